"""Bad input is refused by an error of our own that names the value and says what to do, and harms nobody else.

Each refusal happens while another request runs, which then still says what it would have said alone.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from backends.mock.runner import next_token
from backends.tokenizers.hf import HFTokenizer
from nanovllm import (
    LLM,
    ChatTemplateError,
    ConfigError,
    EngineConfig,
    KVCacheError,
    ModelError,
    ModelInfoError,
    ModelNotFoundError,
    NanoVLLMError,
    PluginNotFoundError,
    PromptError,
    RequestError,
    SamplingParams,
    SamplingParamsError,
)
from nanovllm.model_info import MODEL_INFO_FILE, SCHEMA_VERSION, ModelInfo
from nanovllm.plugins import ModelSource
from nanovllm.plugins.manager import PluginManager

MakeLLM = Callable[..., LLM]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
RUNNING_PROMPT = [5, 6, 7]


def predicted(prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(8):
        tokens.append(next_token(tokens, 512))
    return tokens[len(prompt) :]


def short(value: object) -> str:
    """A name for a test's parameter."""
    return repr(value)[:50]


@contextmanager
def refused(error: type[NanoVLLMError], *words: str) -> Iterator[None]:
    """The block raises exactly `error`, whose message holds all `words`, in order."""
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    assert re.search(".*".join(map(re.escape, words)), str(caught.value), re.DOTALL), str(caught.value)


@contextmanager
def refused_while_another_runs(llm: LLM, error: type[NanoVLLMError], *words: str) -> Iterator[None]:
    stream = llm.stream(RUNNING_PROMPT, GREEDY)
    next(stream)
    before = llm.stats()
    with refused(error, *words):
        yield
    assert llm.stats() == before, "the refused request has changed the engine"
    assert [output.outputs[0].token_ids for output in stream][-1] == predicted(RUNNING_PROMPT)
    assert llm.stats().num_free_kv_blocks == llm.stats().num_kv_blocks


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["''", "empty", "Give at least one"]),
        ([[]], ["[]", "empty", "Give at least one"]),
        ([1] * 128, ["128 tokens", "max_model_len 128", "at most 127", "Shorten it or raise max_model_len"]),
        ("x" * 500, ["tokens", "max_model_len 128", "Shorten it or raise max_model_len"]),
        ([1, 512], ["512", "ids are integers from 0 to 511"]),
        ([1, -1], ["-1", "ids are integers from 0 to 511"]),
        ([[1, 2.5]], ["2.5", "ids are integers from 0 to 511"]),
        ([[True, 1]], ["True", "ids are integers from 0 to 511"]),
        ([["a"]], ["'a'", "ids are integers from 0 to 511"]),
        (None, ["None", "must be a text, a list of token ids"]),
        ({"text": "x"}, ["'text'", "a mapping may have prompt"]),
        (["good", None], ["None", "must be a text or a list of token ids"]),
        (b"bytes", ["b'bytes'", "must be a text"]),
        (["good", b"bytes"], ["b'bytes'", "must be a text"]),
        (["good", ""], ["''", "empty"]),
    ],
    ids=short,
)
def test_a_prompt_that_cannot_be_served_is_refused(prompt: Any, words: list[str], make_llm: MakeLLM) -> None:
    llm = make_llm()
    with refused_while_another_runs(llm, PromptError, *words):
        llm.generate(prompt, GREEDY)
    with refused(PromptError, *words):
        llm.stream(prompt, GREEDY)  # at once, not when it is read


def test_a_text_with_tokens_that_the_model_does_not_have_is_refused(make_llm: MakeLLM) -> None:
    llm = make_llm(backend_options={"vocab_size": 257})  # the bytes, but none of the merges
    with refused(PromptError, "token id", "ids are integers from 0 to 256", "tokenizer"):
        llm.generate("the the", GREEDY)
    assert llm.generate("qx", GREEDY)[0].finished


def test_a_text_that_is_no_unicode_is_refused() -> None:
    tokenizer = HFTokenizer(RustTokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with refused(PromptError, r"'\ud800'", "not valid text"):
        tokenizer.encode("\ud800")


# -- parameters of a request ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"max_tokens": 0}, ["max_tokens is 0", "at least 1, or None"]),
        ({"max_tokens": -3}, ["max_tokens is -3", "at least 1"]),
        ({"max_tokens": 2.0}, ["max_tokens is 2.0", "integer"]),
        ({"temperature": float("nan")}, ["temperature is nan", "at least 0 and finite"]),
        ({"temperature": float("inf")}, ["temperature is inf", "at least 0 and finite"]),
        ({"temperature": -0.1}, ["temperature is -0.1", "at least 0"]),
        ({"temperature": "hot"}, ["temperature is 'hot'", "number"]),
        ({"temperature": None}, ["temperature is None", "number"]),
        ({"temperature": 10**400}, ["temperature is 1000", "finite"]),
        ({"top_p": 0.0}, ["top_p is 0.0", "above 0 and at most 1"]),
        ({"top_p": 1.01}, ["top_p is 1.01", "above 0 and at most 1"]),
        ({"top_p": float("nan")}, ["top_p is nan", "above 0"]),
        ({"min_p": -0.5}, ["min_p is -0.5", "from 0 to 1"]),
        ({"min_p": 2}, ["min_p is 2", "from 0 to 1"]),
        ({"top_k": -2}, ["top_k is -2", "-1, 0 (both: off) or more"]),
        ({"top_k": 1.5}, ["top_k is 1.5", "integer"]),
        ({"seed": "one"}, ["seed is 'one'", "integer"]),
        ({"seed": 2**64}, [f"seed is {2**64}", "to 2**64 - 1"]),
        ({"stop": ""}, ["stop holds ''", "non-empty"]),
        ({"stop": ["a", 3]}, ["stop holds 3", "strings"]),
        ({"stop": 5}, ["stop is 5", "string or a list of strings"]),
        ({"stop_token_ids": [-1]}, ["stop_token_ids is -1", "at least 0"]),
        ({"stop_token_ids": ["</s>"]}, ["stop_token_ids is '</s>'", "integer"]),
        ({"stop_token_ids": [512]}, ["stop_token_ids holds the token id 512", "0 to 511"]),
        ({"logit_bias": {600: 1.0}}, ["logit_bias holds the token id 600", "0 to 511"]),
        ({"allowed_token_ids": [5, 600]}, ["allowed_token_ids holds the token id 600", "0 to 511"]),
        ({"stop_token_ids": 7}, ["stop_token_ids is 7", "list of token ids"]),
        ({"ignore_eos": 1}, ["ignore_eos is 1", "True or False"]),
        ({"output_kind": "delta"}, ["output_kind is 'delta'", "RequestOutputKind"]),
    ],
    ids=short,
)
def test_a_sampling_parameter_out_of_range_is_refused(
    parameters: dict[str, Any], words: list[str], make_llm: MakeLLM
) -> None:
    llm = make_llm()
    with refused_while_another_runs(llm, SamplingParamsError, *words):
        llm.generate("text", SamplingParams(**parameters))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampling_params": {"temperature": 0}}, ["sampling_params is {'temperature': 0}", "SamplingParams"]),
        ({"sampling_params": [GREEDY]}, ["sampling_params has 1 entries for 2 prompts", "one each"]),
        ({"priority": [1, 2, 3]}, ["priority has 3 entries for 2 prompts", "one each"]),
        ({"priority": ["high", "low"]}, ["priority is ['high', 'low']", "int"]),
        ({"priority": [0, 3]}, ["priority is 3", "fcfs", "scheduling_policy='priority'"]),
    ],
    ids=short,
)
def test_arguments_that_do_not_fit_the_prompts_are_refused(
    arguments: dict[str, Any], words: list[str], make_llm: MakeLLM
) -> None:
    llm = make_llm()
    with refused_while_another_runs(llm, RequestError, *words):
        llm.generate(["a", "b"], **arguments)


# -- chat templates ---------------------------------------------------------------------------------------------------

USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{{ raise_exception('Only user and assistant roles are supported!') }}",
            ["refused", "Only user and assistant"],
        ),
        ("{{ messages[0].content.nothing.here }}", ["refused", "nothing"]),
        ("{{ messages[0].content + 3 }}", ["refused", "str"]),
        ("{{ 1 // 0 }}", ["refused", "zero"]),
        ("{{ messages[0].content | xmlattr }}", ["refused", "items"]),
        ("{{ ('x' * 10 ** 13) }}", ["refused"]),
        ("{% for x in range(10 ** 9) %}{% endfor %}", ["refused", "Range too big"]),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ["refused", "recursion"]),
        ("{{ messages.append(1) }}", ["refused", "append", "unsafe"]),
        ("{% if %}", ["not valid Jinja"]),
        ("{% unknown %}", ["not valid Jinja", "unknown"]),
        ("{{ '' | no_such_filter }}", ["not valid Jinja", "no_such_filter"]),
    ],
)
def test_a_chat_template_that_raises_or_is_broken_is_refused(
    template: str, words: list[str], make_llm: MakeLLM
) -> None:
    llm = make_llm()
    with refused_while_another_runs(llm, ChatTemplateError, "template", *words):
        llm.chat(USER, GREEDY, chat_template=template)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["[]", "non-empty list of messages"]),
        (["Hi"], ["'Hi'", "list"]),
        ([{"content": "Hi"}], ["{'content': 'Hi'}", "'role'"]),
        ([{"role": 1, "content": "Hi"}], ["'role': 1", "'role'"]),
        ("Hi", ["'Hi'", "list"]),
        (None, ["None", "list"]),
    ],
    ids=short,
)
def test_messages_that_are_none_are_refused(messages: Any, words: list[str], make_llm: MakeLLM) -> None:
    llm = make_llm()
    with refused_while_another_runs(llm, ChatTemplateError, *words):
        llm.chat(messages, GREEDY, chat_template="{{ messages }}")


def test_a_model_without_a_chat_template_says_so(make_llm: MakeLLM) -> None:
    with refused(ChatTemplateError, "no chat template", "generate()", "chat_template"):
        make_llm().chat(USER)


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_template_variable_that_is_an_argument_of_its_own_is_refused(name: str, make_llm: MakeLLM) -> None:
    with refused(ChatTemplateError, repr(name), "argument of its own"):
        make_llm().chat(USER, chat_template="x", chat_template_kwargs={name: None})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config.json": "{"}, ["tokenizer_config.json", "JSON"]),
        ({"tokenizer_config.json": "[" * 100_000}, ["tokenizer_config.json", "JSON"]),
        ({"chat_template.jinja": "\udcff"}, ["chat_template.jinja"]),
        ({"tokenizer_config.json": '{"chat_template": 5}'}, ["tokenizer_config.json", "chat_template"]),
        (
            {"tokenizer_config.json": '{"chat_template": [{"template": "x"}]}'},
            ["tokenizer_config.json", "chat_template"],
        ),
        ({"tokenizer_config.json": '{"chat_template": ["x"]}'}, ["tokenizer_config.json", "chat_template"]),
    ],
    ids=short,
)
def test_an_unreadable_chat_template_is_refused_by_the_name_of_its_file(
    files: dict[str, str], words: list[str], tmp_path: Path, plugins: PluginManager
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with refused(ChatTemplateError, *words):
        LLM(str(tmp_path), backend="mock", tokenizer_backend="simple-bpe", plugins=plugins)


# -- options of the engine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_num_seq": 3}, ["unknown option 'max_num_seq' of the engine", "Did you mean 'max_num_seqs'"]),
        ({"max_num_seqs": 0}, ["max_num_seqs is 0", "at least 1"]),
        ({"max_model_len": "long"}, ["max_model_len is 'long'", "integer"]),
        ({"max_model_len": 1}, ["max_model_len is 1", "at least 2"]),
        ({"max_model_len": 10**6}, ["max_model_len is 1000000", "at most 4096"]),
        ({"scheduling_policy": "lifo"}, ["scheduling_policy is 'lifo'", "'fcfs' or 'priority'"]),
        ({"enable_prefix_caching": 1}, ["enable_prefix_caching is 1", "True or False"]),
        ({"seed": -1}, ["seed is -1", "from 0"]),
        ({"model": ""}, ["model is ''", "non-empty"]),
        ({"tokenizer": ""}, ["tokenizer is ''", "non-empty"]),
        ({"max_num_seqs": 600}, ["max_num_batched_tokens (512)", "(600)", "Raise the one or lower the other"]),
        ({"enable_chunked_prefill": False}, ["max_num_batched_tokens is 512", "max_model_len 4096", "Raise"]),
        ({"backend_options": {"devise": "cpu"}}, ["'devise'", "vocab_size and check"]),
        ({"backend_options": {"vocab_size": 1}}, ["vocab_size is 1", "at least 2"]),
        ({"backend_options": 5}, ["backend_options is 5", "mapping"]),
        ({"backend_options": {5: 6}}, ["backend_options", "5", "string"]),
    ],
    ids=short,
)
def test_an_engine_option_out_of_range_is_refused(
    options: Mapping[str, Any], words: list[str], plugins: PluginManager
) -> None:
    with refused(ConfigError, *words):
        LLM(**{"model": "any", "backend": "mock", "plugins": plugins, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"num_kv_blocks": 1, "block_size": 4, "max_model_len": 16},
            ["1 blocks of 4 tokens", "16", "needs 4", "Raise"],
        ),
        (
            {"kv_cache_memory_bytes": 100, "block_size": 16},
            ["0 blocks of 16", "num_kv_blocks", "kv_cache_memory_bytes"],
        ),
        ({"num_kv_blocks": 1, "block_size": 1}, ["1 blocks of 1 tokens", "4096", "Raise num_kv_blocks"]),
    ],
    ids=short,
)
def test_a_cache_for_less_than_one_sequence_is_refused(
    options: Mapping[str, Any], words: list[str], plugins: PluginManager
) -> None:
    with refused(KVCacheError, *words):
        LLM("any", backend="mock", plugins=plugins, **options)


def test_a_cache_for_less_than_the_model_s_length_lowers_the_length_if_none_was_asked_for(
    plugins: PluginManager, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LLM("any", backend="mock", plugins=plugins, num_kv_blocks=2, block_size=8)
    assert llm.max_model_len == 16
    assert "16 tokens: max_model_len is lowered" in caplog.text
    with refused(PromptError, "16 tokens", "max_model_len 16"):
        llm.generate([1] * 16, GREEDY)
    assert len(llm.generate([1] * 15, SamplingParams(ignore_eos=True))[0].outputs[0].token_ids) == 1


# -- models and backends ----------------------------------------------------------------------------------------------


def test_an_unknown_backend_is_refused_with_those_there_are_before_any_model_is_looked_for(
    plugins: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused(PluginNotFoundError, "no backend named 'mokc'", "Installed: mock"):
        LLM("no/such-model", backend="mokc", plugins=plugins)
    monkeypatch.setenv("NANOVLLM_BACKEND", "mokc")
    with refused(PluginNotFoundError, "no backend named 'mokc'", "NANOVLLM_BACKEND", "Installed: mock"):
        LLM("no/such-model", plugins=plugins)


def test_an_unknown_tokenizer_backend_is_refused_with_those_there_are(plugins: PluginManager) -> None:
    with refused(PluginNotFoundError, "no tokenizer named 'bpee'", "Installed: hf, simple-bpe"):
        LLM("any", backend="mock", tokenizer_backend="bpee", plugins=plugins)


def test_a_folder_without_a_model_is_refused_with_what_each_backend_says(
    tmp_path: Path, plugins: PluginManager
) -> None:
    with refused(PluginNotFoundError, "no backend can load", repr(str(tmp_path)), "mock: it is used only where"):
        LLM(str(tmp_path), plugins=plugins)
    with refused(PluginNotFoundError, "no tokenizer can load", str(tmp_path), "hf:", "has no tokenizer.json"):
        LLM(str(tmp_path), backend="mock", plugins=plugins)


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path, plugins: PluginManager) -> None:
    missing = str(tmp_path / "missing")
    with refused(ModelNotFoundError, repr(missing), "Give a folder"):
        LLM(missing, plugins=plugins)
    with refused(ModelNotFoundError, repr(missing), "Give a folder"):
        LLM("any", backend="mock", tokenizer=missing, plugins=plugins)


@pytest.mark.parametrize("text", ["", "{", '{"model": {"type": "Magic"}}', "[]", "[" * 100_000])
def test_a_corrupt_tokenizer_is_refused_by_the_name_of_its_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with refused(ModelError, str(tmp_path / "tokenizer.json"), "export the model again"):
        HFTokenizer.load(ModelSource("x", tmp_path))


def example_model_info() -> ModelInfo:
    return ModelInfo(
        model_name="m", model_type="qwen2", vocab_size=8, eos_token_ids=(1, 2), hidden_size=4, num_layers=1,
        num_heads=1, num_kv_heads=1, head_dim=4, max_model_len=16,
    )  # fmt: skip


def write_model_info(folder: Path, **changes: Any) -> None:
    document = json.loads(example_model_info().to_json()) | changes
    kept = {key: value for key, value in document.items() if value != "REMOVED"}
    (folder / MODEL_INFO_FILE).write_text(json.dumps(kept))


def test_a_model_info_survives_writing_and_reading_and_unknown_keys_are_no_matter(tmp_path: Path) -> None:
    write_model_info(tmp_path, from_the_future={"a": 1})
    assert ModelInfo.load(tmp_path) == example_model_info()


def test_a_model_info_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    write_model_info(tmp_path, schema_version=SCHEMA_VERSION + 1)
    with refused(
        ModelInfoError,
        str(tmp_path / MODEL_INFO_FILE),
        f"schema_version {SCHEMA_VERSION + 1}",
        f"up to {SCHEMA_VERSION}",
        "Upgrade nanovllm or export the model again",
    ):
        ModelInfo.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": "REMOVED"}, ["schema_version is None"]),
        ({"schema_version": "1"}, ["schema_version is '1'"]),
        ({"schema_version": 0}, ["schema_version is 0"]),
        ({"vocab_size": "REMOVED"}, ["'vocab_size'", "missing"]),
        ({"vocab_size": "many"}, ["vocab_size is 'many'", "positive integer"]),
        ({"num_layers": 0}, ["num_layers is 0", "positive integer"]),
        ({"head_dim": True}, ["head_dim is True", "positive integer"]),
        ({"eos_token_id": "REMOVED"}, ["'eos_token_id'", "missing"]),
        ({"eos_token_id": "</s>"}, ["</s>"]),
        ({"eos_token_id": [[]]}, ["list"]),
        ({"kv_cache": None}, ["NoneType"]),
        ({"kv_cache": {"layout": "x", "dtype": "float32"}}, ["'block_size'", "missing"]),
        ({"rope": 5}, ["int"]),
        ({"inputs": 5}, ["int"]),
        ({"inputs": [{"name": "x"}]}, ["'dtype'", "missing"]),
        ({"weights": [{}]}, ["'file'", "missing"]),
    ],
    ids=short,
)
def test_a_model_info_with_a_wrong_field_is_refused(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    write_model_info(tmp_path, **changes)
    with refused(ModelInfoError, str(tmp_path / MODEL_INFO_FILE), *words, "Export the model again"):
        ModelInfo.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000], ids=short)
def test_a_model_info_that_is_no_json_object_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / MODEL_INFO_FILE).write_bytes(data)
    with refused(ModelInfoError, str(tmp_path / MODEL_INFO_FILE), "JSON", "Export the model again"):
        ModelInfo.load(tmp_path)


def test_a_missing_model_info_is_refused(tmp_path: Path) -> None:
    with refused(ModelInfoError, str(tmp_path / MODEL_INFO_FILE), "does not exist", "Export the model again"):
        ModelInfo.load(tmp_path)


def test_two_running_requests_of_one_id_are_refused(make_llm: MakeLLM) -> None:
    from backends.mock.runner import MockRunner
    from backends.mock.simple_bpe import SimpleBPE
    from nanovllm.engine.block_manager import BlockManager
    from nanovllm.engine.engine import LLMEngine

    runner = MockRunner()
    runner.allocate_kv_cache(8, 4)
    engine = LLMEngine(runner, SimpleBPE(), BlockManager(8, 4), EngineConfig(), 32)
    engine.add(engine.prepare("a", RUNNING_PROMPT, GREEDY))
    with refused(RequestError, "'a'", "in use", "needs its own"):
        engine.add(engine.prepare("a", [1], GREEDY))
    outputs = [out for _ in range(8) for out in engine.step()]
    assert outputs[-1].outputs[0].token_ids == predicted(RUNNING_PROMPT)
