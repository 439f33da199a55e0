"""Random models of transformers, as the reference that architecture files are held against."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TransformersModel"]


class TransformersModel:
    """A random float32 model, so strong that its logits are far from flat, saved in `folder` as transformers does.

    config: of config.json; a model_type among it. save_options: of save_pretrained.
    """

    def __init__(self, config: dict[str, Any], folder: Path, *, seed: int = 0, **save_options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries that transformers imports
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM
            from transformers.utils import logging

            logging.set_verbosity_error()
            logging.disable_progress_bar()
            torch.manual_seed(seed)
            self.model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**copy.deepcopy(config)), attn_implementation="eager", dtype=torch.float32
            ).eval()
            conv1d = {id(m.weight) for m in self.model.modules() if type(m).__name__ == "Conv1D"}
            for name, parameter in self.model.named_parameters():
                fan_in = parameter.shape[0] if id(parameter) in conv1d else parameter.shape[-1]
                is_gain = parameter.ndim == 1 and "bias" not in name
                mean = 1.0 if is_gain and "gemma" not in config["model_type"] else 0.0
                torch.nn.init.normal_(parameter, mean, 1.5 * fan_in**-0.5 if parameter.ndim > 1 else 0.3)
            self.model.save_pretrained(folder, **save_options)
        self.folder = folder

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every token, (len(token_ids), vocab_size)."""
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([list(token_ids)]), use_cache=False).logits[0].numpy()
        return np.asarray(logits, np.float32)
