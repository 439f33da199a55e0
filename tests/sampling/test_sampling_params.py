"""SamplingParams: vLLM's names and defaults, and what is refused with which words."""

import re
from dataclasses import fields
from typing import Any

import pytest

from nanovllm import SamplingParams, SamplingParamsError
from nanovllm.sampling_params import RequestOutputKind
from nanovllm.structured_outputs import StructuredOutputsParams

VLLM_DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "bad_words": None,
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "structured_outputs": None,
    "logit_bias": None,
    "allowed_token_ids": None,
    "logits_processors": None,
}


def test_the_parameters_and_their_defaults_are_vllm_s() -> None:
    assert {field.name: field.default for field in fields(SamplingParams)} == VLLM_DEFAULTS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, ["n is 0", "from 1 to 16384"]),
        ({"n": 16385}, ["n is 16385", "from 1 to 16384"]),
        ({"n": True}, ["n is True", "integer"]),
        ({"n": 2, "temperature": 0}, ["n is 2 and temperature 0", "n must be 1"]),
        ({"presence_penalty": 2.1}, ["presence_penalty is 2.1", "from -2 to 2"]),
        ({"frequency_penalty": -2.1}, ["frequency_penalty is -2.1", "from -2 to 2"]),
        ({"frequency_penalty": float("nan")}, ["frequency_penalty is nan", "from -2 to 2"]),
        ({"repetition_penalty": 0}, ["repetition_penalty is 0", "above 0"]),
        ({"repetition_penalty": float("inf")}, ["repetition_penalty is inf", "finite"]),
        ({"max_tokens": 3, "min_tokens": 4}, ["min_tokens is 4", "max_tokens 3"]),
        ({"min_tokens": -1}, ["min_tokens is -1", "at least 0"]),
        ({"logprobs": -2}, ["logprobs is -2", "at least 0, or -1"]),
        ({"logprobs": True}, ["logprobs is True", "integer"]),
        ({"prompt_logprobs": 1.5}, ["prompt_logprobs is 1.5", "integer"]),
        ({"stop": "x", "detokenize": False}, ["stop is 'x'", "detokenize False", "stop_token_ids"]),
        ({"detokenize": 1}, ["detokenize is 1", "True or False"]),
        ({"spaces_between_special_tokens": False}, ["spaces_between_special_tokens is False", "only True"]),
        ({"bad_words": "word"}, ["bad_words is 'word'", "a list of strings"]),
        ({"bad_words": ["a", ""]}, ["bad_words holds ''", "non-empty"]),
        ({"logit_bias": [1, 2]}, ["logit_bias is [1, 2]", "map token ids to numbers"]),
        ({"logit_bias": {"1": 2.0}}, ["logit_bias is '1'", "token ids"]),
        ({"logit_bias": {-1: 2.0}}, ["logit_bias is -1", "at least 0"]),
        ({"logit_bias": {1: "much"}}, ["logit_bias of token 1 is 'much'", "number"]),
        ({"logit_bias": {1: float("nan")}}, ["logit_bias of token 1 is nan", "not NaN"]),
        ({"allowed_token_ids": []}, ["allowed_token_ids is empty", "at least one"]),
        ({"allowed_token_ids": 3}, ["allowed_token_ids is 3", "a list of token ids"]),
        ({"allowed_token_ids": [-3]}, ["allowed_token_ids is -3", "at least 0"]),
        ({"logits_processors": [3]}, ["logits_processors holds 3", "a function"]),
        ({"logits_processors": print}, ["logits_processors is", "a list of functions"]),
        ({"structured_outputs": {"regex": "x"}}, ["structured_outputs is {'regex': 'x'}", "StructuredOutputsParams"]),
        (
            {"structured_outputs": StructuredOutputsParams(regex="x"), "ignore_eos": True},
            ["ignore_eos", "can only end"],
        ),
        ({"stop_token_ids": "5"}, ["stop_token_ids is '5'", "a list of token ids"]),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SamplingParamsError, match=".*".join(map(re.escape, words))):
        SamplingParams(**options)


def test_limits_themselves_are_accepted() -> None:
    SamplingParams(
        n=16384, presence_penalty=-2, frequency_penalty=2.0, repetition_penalty=1e-9, max_tokens=4, min_tokens=4,
        logprobs=-1, prompt_logprobs=0, logit_bias={0: -100, 5: float("inf")}, allowed_token_ids=(0,), stop=("a", "b"),
        bad_words=[" a"], logits_processors=[lambda ids, logits: logits],
    )  # fmt: skip
    SamplingParams(temperature=0, detokenize=False, stop=[], max_tokens=None, min_tokens=10**9, top_k=-1)


def test_options_of_json_become_parameters() -> None:
    params = SamplingParams.from_options(
        {"logit_bias": {"5": 1.5, "10": -1}, "structured_outputs": {"choice": ["a", "b"]}, "temperature": 0}
    )
    assert params == SamplingParams(
        logit_bias={5: 1.5, 10: -1}, structured_outputs=StructuredOutputsParams(choice=["a", "b"]), temperature=0
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 1}, ["unknown sampling parameter 'temprature'", "Did you mean 'temperature'?"]),
        ({"best_of": 2}, ["unknown sampling parameter 'best_of'", "Known: allowed_token_ids, bad_words"]),
        ({"structured_outputs": {"regexp": "x"}}, ["option of structured_outputs 'regexp'", "Did you mean 'regex'?"]),
        ({"logit_bias": {"five": 1}}, ["logit_bias is 'five'", "token ids"]),
    ],
    ids=str,
)
def test_an_unknown_option_is_refused_with_the_nearest_one(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SamplingParamsError, match=".*".join(map(re.escape, words))):
        SamplingParams.from_options(options)
