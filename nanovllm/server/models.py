"""GET /v1/models and /v1/models/{name}: what is served, and how long its context is."""

from fastapi import APIRouter

from nanovllm.server.answers import answer_docs
from nanovllm.server.context import ServerContext
from nanovllm.server.protocol.models import Model, ModelList

__all__ = ["models_router"]


def models_router(context: ServerContext) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])

    def model(name: str) -> Model:
        info = context.llm.model_info
        return Model(id=name, created=context.created_s, root=info.model_name, max_model_len=context.llm.max_model_len)

    @router.get("/v1/models", responses=answer_docs(ModelList))
    async def list_models() -> ModelList:
        """The model, once for each of its names."""
        return ModelList(data=[model(name) for name in context.model_names])

    @router.get("/v1/models/{name:path}", responses=answer_docs(Model))
    async def show_model(name: str) -> Model:
        """The model under one of its names."""
        return model(context.model_name(name))

    return router
