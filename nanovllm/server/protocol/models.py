"""/v1/models: what is served."""

from typing import Literal

from pydantic import BaseModel

__all__ = ["Model", "ModelList"]


class Model(BaseModel):
    """root: the model itself, whatever names it is served under."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nanovllm"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
