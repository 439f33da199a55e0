"""The files of a Hugging Face checkpoint, written as those of real Qwen2 chat models are."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.tiny_chat_recipe.conversation import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    TURN_END,
    TURN_START,
)
from models.tiny_chat_recipe.tokenizer import SPECIAL_TOKENS, token_id

MAX_POSITION_EMBEDDINGS = 2048


def model_config(tokenizer: Tokenizer) -> Qwen2Config:
    """Return the architecture: 3.7 million parameters, every dimension a multiple of 128."""
    return Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_act="silu",
        max_position_embeddings=MAX_POSITION_EMBEDDINGS,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, END_OF_TEXT),
        eos_token_id=token_id(tokenizer, TURN_END),
    )


def _config_json(config: Qwen2Config) -> dict[str, Any]:
    """Return config.json in the dialect of the published Qwen2 checkpoints."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "hidden_act": config.hidden_act,
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "model_type": "qwen2",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": 10000.0,
        "sliding_window": config.max_position_embeddings,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def _tokenizer_config_json(tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(token_id(tokenizer, text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for text in SPECIAL_TOKENS
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [TURN_START, TURN_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "errors": "replace",
        "model_max_length": MAX_POSITION_EMBEDDINGS,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _generation_config_json(tokenizer: Tokenizer) -> dict[str, Any]:
    end_of_text_id = token_id(tokenizer, END_OF_TEXT)
    return {
        "bos_token_id": end_of_text_id,
        "do_sample": False,
        "eos_token_id": [token_id(tokenizer, TURN_END), end_of_text_id],
        "pad_token_id": end_of_text_id,
    }


def round_to_bfloat16(model: Qwen2ForCausalLM) -> None:
    """Round every weight in place to the nearest bfloat16 value, and leave its type as it is."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config_json(tokenizer))


def save_model(model: Qwen2ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model.safetensors (bf16, without the tied head), config.json and generation_config.json."""
    weights = {
        name: weight.detach().bfloat16().contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config_json(model.config))
    _write_json(folder / "generation_config.json", _generation_config_json(tokenizer))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
