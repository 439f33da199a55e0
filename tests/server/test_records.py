"""What passes between the server and the engine are small records that could as well go to another process."""

import asyncio
import contextlib
import pickle

from mock_llms import mock_llm

from nanovllm import RequestOutput, SamplingParams
from nanovllm.sampling_params import RequestOutputKind
from nanovllm.structured_outputs import StructuredOutputsParams

PARAMS = SamplingParams(
    max_tokens=20,
    temperature=0.7,
    seed=3,
    n=2,
    logprobs=2,
    stop=["never said"],
    logit_bias={7: 1.5},
    output_kind=RequestOutputKind.DELTA,
)
FORM = SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "object"}), max_tokens=4)
LARGEST_BYTES = 2000


def test_what_the_server_sends_is_picklable() -> None:
    for params in (PARAMS, FORM):
        assert pickle.loads(pickle.dumps(params)) == params


def test_what_the_engine_answers_is_picklable_and_small() -> None:
    async def outputs() -> list[RequestOutput]:
        return [output async for output in llm.generate([5, 6, 7], PARAMS)]

    with contextlib.closing(mock_llm()) as llm:
        told = asyncio.run(outputs())
        stats = llm.stats()
    assert len(told) > 1
    for output in told:
        copy = pickle.dumps(output)
        assert pickle.loads(copy) == output
        tokens = sum(len(completion.token_ids) for completion in output.outputs)
        assert len(copy) < LARGEST_BYTES + 500 * tokens
    assert pickle.loads(pickle.dumps(stats)) == stats
