"""The laws that every model runner must keep, as a test class that any author of a backend can run.

    class TestMyRunner(ModelRunnerConformance):
        def make_runner(self):
            return MyRunner(...)

pytest collects the inherited tests. Each law runs the engine around a fresh runner under one condition and compares
with the plainest run there is: one request at a time, whole prompts, no shared blocks, no step before the one before it
is known. A law that a runner cannot keep is opted out of by overriding it with `pytest.mark.xfail(reason=...)`.
"""

import random
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from nanovllm.outputs import RequestOutput
from nanovllm.plugins.interfaces import ModelRunner
from nanovllm.plugins.records import KVMode
from nanovllm.sampling_params import SamplingParams
from nanovllm.testing.builders import make_engine, run_requests

__all__ = ["ModelRunnerConformance"]


class ModelRunnerConformance:
    """Override `make_runner`; the other attributes where the model needs it.

    kv: as in the runner's plugin record. max_model_len, num_new_tokens: tokens. block_size: None = the runner's.
    """

    kv: KVMode = "paged"
    max_model_len = 128
    num_new_tokens = 12
    block_size: int | None = 8

    def make_runner(self) -> ModelRunner:
        """A fresh runner, before its KV cache is allocated."""
        raise NotImplementedError

    def make_prompts(self, vocab_size: int) -> list[list[int]]:
        """Prompts of 1 to 70 tokens; the last two begin alike, over more than two blocks."""
        randomness = random.Random(5)
        prompts = [[randomness.randrange(vocab_size) for _ in range(n)] for n in (1, 2, 7, 8, 9, 33, 70)]
        shared = [randomness.randrange(vocab_size) for _ in range(20)]
        return [*prompts, [*shared, 1], [*shared, 0, 1]]

    def run_engine(
        self, prompts: Seq[Seq[int]], params: SamplingParams | Seq[SamplingParams], **options: Any
    ) -> list[RequestOutput]:
        """Runs `prompts` in an engine of its own, closed afterwards."""
        return self.run_twice(prompts, params, times=1, **options)

    def run_twice(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        *,
        times: int = 2,
        **options: Any,
    ) -> list[RequestOutput]:
        """Runs `prompts` `times` times in one engine; the outputs of the last time."""
        block_size = self.block_size if self.kv == "paged" else None
        runner = self.make_runner()
        engine = make_engine(
            runner, kv=self.kv, **{"max_model_len": self.max_model_len, "block_size": block_size, **options}
        )
        try:
            outputs: list[RequestOutput] = []
            for _ in range(times):
                outputs = run_requests(engine, prompts, params)
            stats = engine.stats()
            assert stats.num_free_kv_blocks == stats.num_kv_blocks, "blocks were not given back"
            if options.get("num_kv_blocks"):
                assert stats.num_preemptions > 0, "the run was meant to preempt"
            return outputs
        finally:
            engine.close()

    def one_at_a_time(self, params: SamplingParams) -> tuple[list[list[int]], list[list[int]]]:
        """The prompts, and what each gives when it is alone in the engine."""
        runner = self.make_runner()
        prompts = self.make_prompts(runner.model_info.vocab_size)
        runner.close()
        plain = {"enable_prefix_caching": False, "async_scheduling": False}
        return prompts, [_tokens(self.run_engine([prompt], params, **plain))[0] for prompt in prompts]

    def greedy(self) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=self.num_new_tokens, ignore_eos=True)

    def test_a_batch_gives_what_each_request_gives_alone(self) -> None:
        prompts, alone = self.one_at_a_time(self.greedy())
        assert _tokens(self.run_engine(prompts, self.greedy())) == alone

    def test_chunks_give_what_whole_prompts_give(self) -> None:
        prompts, alone = self.one_at_a_time(self.greedy())
        outputs = self.run_engine(prompts, self.greedy(), max_num_batched_tokens=16, max_num_seqs=16)
        assert _tokens(outputs) == alone

    def test_preempted_requests_give_what_undisturbed_ones_give(self) -> None:
        if self.kv != "paged":
            return  # every sequence has a block of its own: nothing is ever preempted
        prompts, alone = self.one_at_a_time(self.greedy())
        num_blocks = -(-self.max_model_len // (self.block_size or 32))
        outputs = self.run_engine(
            prompts, self.greedy(), num_kv_blocks=num_blocks, max_num_seqs=16, max_num_batched_tokens=128
        )
        assert _tokens(outputs) == alone

    def test_a_cached_prefix_gives_what_computing_it_gives(self) -> None:
        prompts, alone = self.one_at_a_time(self.greedy())
        outputs = self.run_twice(prompts, self.greedy())
        assert _tokens(outputs) == alone
        if self.kv == "paged":
            assert any(output.num_cached_tokens for output in outputs), "the second run found nothing cached"

    def test_seeded_sampling_does_not_depend_on_the_batch(self) -> None:
        params = replace(self.greedy(), temperature=1.0, top_p=0.95, seed=7)
        prompts, alone = self.one_at_a_time(params)
        assert _tokens(self.run_engine(prompts, params)) == alone

    def test_steps_on_top_of_steps_that_are_not_known_yet_give_what_waiting_gives(self) -> None:
        """Every request ends at a token that the others' next step does not know of, or at a length of its own."""
        prompts, alone = self.one_at_a_time(self.greedy())
        params, expected = [], []
        for i, token_ids in enumerate(alone):
            length = 1 + i % self.num_new_tokens
            if i % 2:
                params.append(replace(self.greedy(), max_tokens=length))
            else:
                stop = token_ids[length - 1]
                length = token_ids.index(stop) + 1
                params.append(replace(self.greedy(), stop_token_ids=[stop]))
            expected.append(token_ids[:length])
        assert _tokens(self.run_engine(prompts, params)) == expected
        assert _tokens(self.run_engine(prompts, params, max_num_seqs=3, max_num_batched_tokens=16)) == expected

    def test_the_model_info_is_complete(self) -> None:
        runner = self.make_runner()
        info = runner.model_info
        assert info.model_name
        assert min(info.vocab_size, info.max_model_len, info.num_layers, info.num_kv_heads, info.head_dim) > 0
        assert all(0 <= token_id < info.vocab_size for token_id in info.eos_token_ids)
        assert runner.preferred_block_size > 0
        assert runner.kv_bytes_per_block(32) >= 0
        runner.close()

    def test_closing_twice_is_no_error(self) -> None:
        runner = self.make_runner()
        runner.close()
        runner.close()


def _tokens(outputs: Seq[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]
