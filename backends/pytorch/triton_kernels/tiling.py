"""How large a piece of attention one program works on. In: shapes. Out: `Tiling`. Knows neither torch nor Triton."""

from dataclasses import dataclass

__all__ = ["Tiling", "head_width", "power_of_two_from", "tiling_for"]

_LEAST_SIDE = 16  # of a matrix product that Triton takes
_MOST_KEYS = 128
_TILE_BYTES = 32 * 1024  # of keys and values of one iteration


@dataclass(frozen=True, slots=True)
class Tiling:
    """rows: query rows of a program, each one token's one head; a power of two that holds a whole group of heads.
    keys: keys per iteration, a power of two. num_warps, num_stages: as Triton takes them."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def power_of_two_from(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()


def head_width(head_dim: int) -> int:
    """Features of a head as a program holds them: a power of two that a matrix product takes."""
    return max(_LEAST_SIDE, power_of_two_from(head_dim))


def tiling_for(*, group: int, head_dim: int, max_query_len: int, element_size: int) -> Tiling:
    """The tiling of a step. group: query heads of a KV head. max_query_len: no sequence of the step has more new
    tokens. element_size: bytes of an element of the pools.

    Decodes are bound by memory: a row block as small as tensor cores take, and two tiles of keys and values on their
    way while one is used. Prefill is bound by products: as many rows as registers hold, and one tile on its way. Triton
    divides its stages between the block table, which says where keys are, and the keys, so n tiles take 2 n + 1.
    The sizes leave hardly a register spilled and fit into 99 KiB of shared memory, the least of sm_80 to sm_90.
    """
    width = head_width(head_dim)
    is_half, is_decode = element_size == 2, max_query_len == 1
    most = (128 if is_half else 32) // (1 if width <= 128 else 2)
    wanted = 0 if is_decode else min(most, power_of_two_from(group * max_query_len))
    rows = max(_LEAST_SIDE, power_of_two_from(group), wanted)
    most_keys = _MOST_KEYS // (1 if is_half else 4) // (1 if is_decode and rows == _LEAST_SIDE else 2)
    keys = max(_LEAST_SIDE, min(most_keys, _TILE_BYTES // (2 * width * element_size)))
    num_ahead = 2 if is_decode and is_half else 1
    return Tiling(rows, keys, num_warps=8 if rows >= 64 else 4, num_stages=2 * num_ahead + 1)
