"""What a request gets without asking: the model's sampling defaults, and an account of where its time went."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.mock.runner import MockRunner
from nanovllm import LLM, PromptError, RequestOutputKind, SamplingParams, SamplingParamsError
from nanovllm.config import EngineConfig
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.engine import LLMEngine
from nanovllm.plugins import ModelRunnerPlugin, Verdict, hookimpl
from nanovllm.plugins.manager import PluginManager
from nanovllm.testing import NumberTokenizer, run_requests

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def llm_with_defaults(plugins: PluginManager, defaults: dict[str, Any], **options: Any) -> LLM:
    """An LLM whose model says so in its generation_config.json."""

    class Plugin:
        @hookimpl
        def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
            def make(source: object, config: EngineConfig) -> MockRunner:
                runner = MockRunner()
                runner.model_info = replace(runner.model_info, generation_defaults=defaults, eos_token_ids=(0, 7))
                return runner

            return [
                ModelRunnerPlugin(
                    name="with-defaults",
                    factory=make,
                    can_load=lambda source: Verdict(False, "only by name"),
                    needs_folder=False,
                    tokenizer="simple-bpe",
                )
            ]

    plugins.register(Plugin(), "with-defaults")
    return LLM("any", backend="with-defaults", plugins=plugins, **options)


def test_a_request_without_parameters_is_sampled_as_the_model_says(plugins: PluginManager) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "max_new_tokens": 3}
    llm = llm_with_defaults(plugins, {**defaults, "do_sample": True})
    params = llm.get_default_sampling_params()
    assert params == SamplingParams(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1, max_tokens=3)
    assert [out.outputs[0].token_ids for out in llm.generate(["a", "b"])] == [
        out.outputs[0].token_ids
        for out in llm_with_defaults(PluginManager.discover(), defaults).generate(["a", "b"], params)
    ]


def test_parameters_that_are_given_are_not_mixed_with_the_model_s(plugins: PluginManager) -> None:
    llm = llm_with_defaults(plugins, {"temperature": 5.0, "max_new_tokens": 2})
    (output,) = llm.generate("a", GREEDY)
    assert len(output.outputs[0].token_ids) == 6


def test_the_model_s_defaults_can_be_left_out(plugins: PluginManager) -> None:
    llm = llm_with_defaults(plugins, {"temperature": 0.1}, generation_config="none")
    assert llm.get_default_sampling_params() == SamplingParams()


def test_defaults_out_of_range_are_refused_when_the_model_is_loaded(plugins: PluginManager) -> None:
    with pytest.raises(SamplingParamsError, match="top_p is 7"):
        llm_with_defaults(plugins, {"top_p": 7})


def test_each_of_several_ends_of_sequence_ends_a_request(plugins: PluginManager) -> None:
    llm = llm_with_defaults(plugins, {})
    for token_id in (0, 7):
        (output,) = llm.generate("a", SamplingParams(temperature=0, allowed_token_ids=[token_id]))
        assert output.outputs[0].token_ids == [token_id]
        assert output.outputs[0].stop_reason is None


def test_the_box_model_stops_at_the_ids_of_its_generation_config() -> None:
    folder = Path(__file__).parents[2] / "models" / "tiny-chat"
    said = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    with LLM("tiny-chat") as llm:
        assert list(llm.model_info.eos_token_ids) == said
        assert len(said) > 1


class Clock:
    """Goes on by a second with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_the_metrics_of_a_request_say_when_what_happened() -> None:
    runner = MockRunner(vocab_size=50)
    runner.allocate_kv_cache(64, 4)
    engine = LLMEngine(
        runner, NumberTokenizer(50), BlockManager(64, 4), EngineConfig(max_num_seqs=1), 64, clock=Clock()
    )
    first, second = run_requests(engine, [[1, 2, 3], [4, 5, 6]], GREEDY)
    one, other = first.metrics, second.metrics
    assert one is not None
    assert other is not None
    assert (one.arrival_s, other.arrival_s) == (1.0, 2.0)
    assert one.arrival_s < one.scheduled_s < one.first_token_s < one.last_token_s
    assert other.scheduled_s > one.last_token_s  # one after the other
    for metrics in (one, other):
        assert metrics.time_to_first_token_s == metrics.queue_time_s + metrics.prefill_time_s
        assert metrics.arrival_s + metrics.time_to_first_token_s + metrics.decode_time_s == metrics.last_token_s
        assert metrics.num_generation_tokens == 6
        assert metrics.inter_token_latency_s == metrics.decode_time_s / 5
        assert metrics.num_preemptions == 0


def test_only_a_finished_request_has_metrics() -> None:
    runner = MockRunner(vocab_size=50)
    runner.allocate_kv_cache(64, 4)
    engine = LLMEngine(runner, NumberTokenizer(50), BlockManager(64, 4), EngineConfig(), 64)
    engine.add(engine.prepare("a", [1], replace(GREEDY, output_kind=RequestOutputKind.DELTA)))
    outputs = []
    while engine.has_unfinished_requests:
        outputs += engine.step()
    assert [output.metrics is not None for output in outputs] == [False] * 5 + [True]


def test_the_stats_add_up(make_llm: Any) -> None:
    llm = make_llm(max_num_seqs=4)
    llm.generate([[1, 2, 3], [4, 5], [6]], replace(GREEDY, temperature=1.0, n=2))
    stats = llm.stats()
    assert stats.generation_tokens == 3 * 2 * 6
    assert stats.num_finished_requests == 3
    assert stats.decode_tokens == 3 * 2 * 5
    assert stats.last_step_num_tokens == stats.last_step_num_seqs > 0
    assert stats.num_failed_requests == 0


def test_a_prompt_may_be_a_mapping_and_salts_keep_prefixes_apart(make_llm: Any) -> None:
    llm = make_llm()
    prompt = [1, 2, 3] * 4

    def cached(**fields: Any) -> int:
        (output,) = llm.generate({"prompt_token_ids": prompt, **fields}, GREEDY)
        return output.num_cached_tokens

    assert [cached(), cached(), cached(cache_salt="a"), cached(cache_salt="b"), cached(cache_salt="a")] == [
        0,
        8,
        0,
        0,
        8,
    ]
    (text,) = llm.generate({"prompt": "hello"}, GREEDY)
    assert text.outputs == llm.generate("hello", GREEDY)[0].outputs


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"prompt": "a", "prompt_token_ids": [1]},
        {"prompt": {"prompt": "a"}},
        {"prompt": 5},
        {"prompt": "a", "cache_salt": 3},
        {"prompt": "a", "multi_modal_data": None},
    ],
)
def test_a_mapping_that_is_no_prompt_is_refused(prompt: Any, make_llm: Any) -> None:
    with pytest.raises(PromptError):
        make_llm().generate(prompt, GREEDY)
