"""The exporter's and the oracle's reading of every operation agree, also of those that Qwen2 does not use.

Three decoders in the style of other families: partial rotary, biases and a parallel block; windows, capped scores and
scaled embeddings; learned positions and layers without rotation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from paged_driver import PagedSequence, Work, step

from backends.ort.options import OrtOptions
from backends.ort.runner import PagedRunner
from backends.ort.session import open_session
from export.graph import build_graph
from export.model_facts import make_model_info
from nanovllm.architectures import AttentionSpec, Geometry, Linear, Ops, Rope, Weight
from nanovllm.checkpoint import Checkpoint
from nanovllm.testing import ReferenceModel, write_checkpoint

V = TypeVar("V")

WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB, MAX_LEN, BLOCK_SIZE = 24, 4, 2, 8, 50, 64, 8
PLAIN_ROPE = Rope(theta=100.0, dim=HEAD_DIM)


def linear(name: str, in_features: int, out_features: int, *, bias: bool = True) -> Linear:
    weight = Weight(f"{name}.weight", (out_features, in_features))
    return Linear(weight, Weight(f"{name}.bias", (out_features,)) if bias else None)


def attention(
    ops: Ops[V], x: V, layer: int, *, rope: Rope | None, window: int | None = None, softcap: float | None = None
) -> V:
    sizes = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
    # Only q has a bias: a merged product must not be made of these.
    layers = [linear(f"{layer}.{name}", WIDTH, size, bias=name == "q") for name, size in sizes.items()]
    q, k, v = ops.linear(x, layers, shard="column")
    k = ops.rms_norm(k, Weight(f"{layer}.k_norm", (HEAD_DIM,)), eps=1e-5, groups=KV_HEADS)
    spec = AttentionSpec(
        layer=layer,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        scale=0.3,
        rope=rope,
        window=window,
        softcap=softcap,
    )
    (out,) = ops.linear(ops.attention(q, k, v, spec), [linear(f"{layer}.o", HEADS * HEAD_DIM, WIDTH)], shard="row")
    return out


def embed(ops: Ops[V]) -> V:
    return ops.embedding(Weight("table", (VOCAB, WIDTH)), "token_ids")


def head(ops: Ops[V], x: V) -> V:
    (logits,) = ops.linear(ops.wanted_rows(x), [Linear(Weight("table", (VOCAB, WIDTH)))], shard="vocab")
    return logits


def parallel_blocks(ops: Ops[V]) -> V:
    x = embed(ops)
    for layer, rope in enumerate((Rope(theta=100.0, dim=4), Rope(theta=50.0, dim=6, interleaved=True))):
        normed = ops.layer_norm(x, Weight(f"{layer}.norm", (WIDTH,)), Weight(f"{layer}.shift", (WIDTH,)), eps=1e-5)
        (hidden,) = ops.linear(normed, [linear(f"{layer}.up", WIDTH, 30)], shard="column")
        (mlp,) = ops.linear(ops.activation(hidden, "gelu_tanh"), [linear(f"{layer}.down", 30, WIDTH)], shard="row")
        x = ops.add(x, ops.add(attention(ops, normed, layer, rope=rope), mlp))
    return head(ops, ops.layer_norm(x, Weight("norm", (WIDTH,)), None, eps=1e-5))


def windows_and_caps(ops: Ops[V]) -> V:
    x = ops.scale(embed(ops), WIDTH**0.5)
    for layer, window in enumerate((5, None, 9)):
        normed = ops.rms_norm(x, Weight(f"{layer}.norm", (WIDTH,)), eps=1e-6, offset=1.0)
        x = ops.add(x, attention(ops, normed, layer, rope=PLAIN_ROPE, window=window, softcap=2.0))
        halves = [linear(f"{layer}.{name}", WIDTH, 30, bias=False) for name in ("gate", "up")]
        gate, up = ops.linear(x, halves, shard="column")
        (mlp,) = ops.linear(ops.gated(gate, up, "gelu"), [linear(f"{layer}.down", 30, WIDTH)], shard="row")
        x = ops.add(x, mlp)
    return ops.softcap(head(ops, x), 3.0)


def learned_positions(ops: Ops[V]) -> V:
    x = ops.add(embed(ops), ops.embedding(Weight("positions", (MAX_LEN, WIDTH)), "positions"))
    x = ops.add(x, attention(ops, x, 0, rope=None))
    x = ops.add(x, attention(ops, ops.activation(x, "silu"), 1, rope=PLAIN_ROPE))
    return head(ops, x)


@dataclass(frozen=True)
class Decoder:
    """A decoder as the interpreters see it: sizes, and a function of `Ops`."""

    body: Callable[..., object]
    num_layers: int

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            model_type="test",
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_layers=self.num_layers,
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            max_model_len=MAX_LEN,
            rope=None,
        )

    def logits(self, ops: Ops[V]) -> V:
        return self.body(ops)


def make_runner(decoder: Decoder, checkpoint: Path, folder: Path) -> PagedRunner:
    """Graph and weights of a decoder that no config describes, opened."""
    source = Checkpoint(checkpoint)
    graph = build_graph(decoder, source, max_model_len=MAX_LEN, producer_version="test")
    folder.mkdir()
    (folder / "model.onnx").write_bytes(graph.model.SerializeToString())
    weights = graph.plan.write(folder, lambda num_bytes: None)
    info = make_model_info(
        source,
        decoder.geometry,
        graph,
        weights,
        name="test",
        source="test",
        max_model_len=MAX_LEN,
        block_size=BLOCK_SIZE,
    )
    return PagedRunner(open_session(folder, info, num_threads=1, options=OrtOptions()), info)


@pytest.mark.parametrize(
    "decoder",
    [Decoder(parallel_blocks, 2), Decoder(windows_and_caps, 3), Decoder(learned_positions, 2)],
    ids=lambda decoder: decoder.body.__name__,
)
def test_graph_and_oracle_agree_over_chunks_and_decodes(tmp_path: Path, decoder: Decoder) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", decoder=decoder, dtype="float32")
    reference = ReferenceModel(checkpoint, decoder=decoder)
    runner = make_runner(decoder, checkpoint, tmp_path / "export")
    runner.allocate_kv_cache(20, BLOCK_SIZE)
    random = np.random.default_rng(0)
    long = PagedSequence(random.integers(0, VOCAB, 40).tolist(), [7, 3, 11, 2, 5])
    short = PagedSequence(random.integers(0, VOCAB, 16).tolist(), [19, 13])
    for work in (
        [Work(long, 21, "all"), Work(short, 6, "all")],
        [Work(short, 8, "all"), Work(long, 17, "all")],
        [Work(short), Work(long)],
    ):
        for sequence, position, logits in step(runner, work, BLOCK_SIZE):
            expected = reference.logits(sequence.tokens)[position]
            assert np.ptp(expected) > 0.5, "such flat logits would agree with anything"
            np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)
    runner.close()
