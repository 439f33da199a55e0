"""Workloads: the prompts of a benchmark and how many tokens each is continued by.

In: a name or sizes, a vocabulary, a seed and a round. Out: random token ids and output lengths, the same on every
machine. Knows nothing of engines, so that every engine is given the same.

Rounds of a workload differ in their token ids alone: an engine that keeps a prefix cache between rounds finds nothing
in it, and one that keeps none is not at a disadvantage.
"""

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal

from nanovllm.errors import ConfigError

__all__ = ["WORKLOAD_NAMES", "Workload", "named_workload", "uniform_workload"]

_LENGTHS_SEED = 679033
"""Of the lengths of offline-48. Chosen so that the totals are 6,528 and 3,966 tokens, those of measurements that were
made before this file was."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that arrive together, decoded greedily and past any end of sequence.

    prompts: token ids of each. output_lens: how many tokens each is continued by.
    """

    name: str
    prompts: list[list[int]]
    output_lens: list[int]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_output_tokens(self) -> int:
        return sum(self.output_lens)

    @property
    def counted(self) -> Literal["prompt", "output"]:
        """The tokens whose number per second says how fast an engine is: of the prompts where next to nothing else is
        computed."""
        return "output" if any(length > 1 for length in self.output_lens) else "prompt"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as an engine's adapter gets them."""
        return {"prompts": self.prompts, "output_lens": self.output_lens}


def uniform_workload(
    num_prompts: int, input_len: int, output_len: int, vocab_size: int, *, seed: int = 0, round_index: int = 0
) -> Workload:
    """num_prompts prompts of input_len tokens, each continued by output_len. Raises `ConfigError` for sizes below 1."""
    for name, size in (("num_prompts", num_prompts), ("input_len", input_len), ("output_len", output_len)):
        if size < 1:
            raise ConfigError(f"{name} is {size}; it must be at least 1.")
    name = f"{num_prompts} x {input_len} in, {output_len} out"
    draw = _drawer(name, vocab_size, seed, round_index)
    return Workload(name, [draw(input_len) for _ in range(num_prompts)], [output_len] * num_prompts)


def named_workload(name: str, vocab_size: int, *, seed: int = 0, round_index: int = 0) -> Workload:
    """One of WORKLOAD_NAMES. Token ids are below vocab_size and depend on everything given; lengths on the name."""
    try:
        make = _MAKERS[name]
    except KeyError:
        known = ", ".join(WORKLOAD_NAMES)
        raise ConfigError(f"there is no workload {name!r}. Take one of: {known}; or give its sizes.") from None
    prompts, output_lens = make(_drawer(name, vocab_size, seed, round_index))
    return Workload(name, prompts, output_lens)


_Drawer = Callable[[int], list[int]]
_Requests = tuple[list[list[int]], list[int]]


def _drawer(name: str, vocab_size: int, seed: int, round_index: int) -> _Drawer:
    randomness = random.Random(f"{name}/{vocab_size}/{seed}/{round_index}")
    return lambda count: [randomness.randrange(vocab_size) for _ in range(count)]


def _offline_48(draw: _Drawer) -> _Requests:
    """nano-vllm's benchmark, scaled down to a machine of two cores."""
    lengths = random.Random(_LENGTHS_SEED)
    input_lens = [lengths.randint(32, 256) for _ in range(48)]
    output_lens = [lengths.randint(32, 128) for _ in range(48)]
    return [draw(length) for length in input_lens], output_lens


def _uniform(num_prompts: int, input_len: int, output_len: int) -> Callable[[_Drawer], _Requests]:
    return lambda draw: ([draw(input_len) for _ in range(num_prompts)], [output_len] * num_prompts)


def _shared_prefix(draw: _Drawer) -> _Requests:
    shared = draw(1000)
    return [shared + draw(32) for _ in range(64)], [32] * 64


_MAKERS: dict[str, Callable[[_Drawer], _Requests]] = {
    "offline-48": _offline_48,
    "single": _uniform(1, 128, 256),
    "prefill": _uniform(8, 1024, 1),
    "long": _uniform(16, 2000, 128),
    "shared-prefix": _shared_prefix,
}
WORKLOAD_NAMES: Seq[str] = tuple(_MAKERS)
