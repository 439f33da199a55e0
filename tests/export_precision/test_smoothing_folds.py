"""Where smoothing folds, and that it leaves the model's function alone, bit for bit."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from precision_driver import with_outliers

from export.precision import PrecisionPlan, parse_keep
from export.smoothing import Fold, Smoothing, find_folds
from nanovllm.architectures import (
    Decoder,
    GatedMLP,
    Geometry,
    Linear,
    Mixture,
    Ops,
    Weight,
    decoder_from_config,
)
from nanovllm.checkpoint import Checkpoint
from nanovllm.testing import ReferenceModel, tiny_config, write_checkpoint

Float32Array = npt.NDArray[np.float32]
V = TypeVar("V")


def folds_of(precision: str = "int8", *keep: str, **changes: Any) -> dict[str, list[str]]:
    """Names of the targets of every fold, by the name of its source."""
    decoder = decoder_from_config(tiny_config(**changes))
    folds = find_folds(decoder, PrecisionPlan(precision, parse_keep(keep)))
    return {fold.source.name: [weight.name for weight in fold.targets] for fold in folds}


def test_norms_and_up_projections_are_folded_into_what_reads_them() -> None:
    folds = folds_of(num_hidden_layers=1, tie_word_embeddings=False)
    layer = "model.layers.0"
    assert folds == {
        f"{layer}.input_layernorm.weight": [f"{layer}.self_attn.{part}_proj.weight" for part in "qkv"],
        f"{layer}.post_attention_layernorm.weight": [f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up")],
        f"{layer}.mlp.up_proj.weight": [f"{layer}.mlp.down_proj.weight"],
        "model.norm.weight": ["lm_head.weight"],
    }


def test_a_tied_head_is_left_alone_since_the_embedding_reads_it_too() -> None:
    assert "model.norm.weight" not in folds_of()


def test_floats_are_left_alone_unless_a_quantized_layer_reads_the_same_norm() -> None:
    for precision in ("fp32", "fp16", "bf16"):
        assert not folds_of(precision)
    assert folds_of("fp32", "layers.0.self_attn.k_proj=int8").keys() == {"model.layers.0.input_layernorm.weight"}


class Folded:
    """A checkpoint whose tensors are folded, for the oracle."""

    def __init__(self, checkpoint: Checkpoint, decoder: Decoder) -> None:
        self._checkpoint = checkpoint
        folds = find_folds(decoder, PrecisionPlan("int8"))
        self.num_folds = len(folds)
        self.smoothing = Smoothing(folds, self._read)

    def _read(self, weight: Weight, max_bytes: int) -> Iterator[Float32Array]:
        return self._checkpoint.tensor(weight.name, weight.shape).slices(max_bytes)

    def reference(self) -> ReferenceModel:
        model = ReferenceModel(self._checkpoint)
        original = model.weight

        def folded(weight: Weight) -> Any:
            original(weight)
            return np.concatenate(list(self.smoothing.slices(weight, 1000)))

        model.weight = folded
        return model


@pytest.mark.parametrize("tied", [True, False])
def test_the_folded_model_is_the_same_function_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    plain = write_checkpoint(tmp_path / "plain", tiny_config(tie_word_embeddings=tied), dtype="float32")
    checkpoint = Checkpoint(with_outliers(plain, tmp_path / "outliers", share=0.1))
    folded = Folded(checkpoint, decoder_from_config(checkpoint.config))
    assert folded.num_folds == (6 if tied else 7)
    tokens = np.random.default_rng(0).integers(0, 211, 12).tolist()
    expected = ReferenceModel(checkpoint).logits(tokens)
    np.testing.assert_allclose(folded.reference().logits(tokens), expected, rtol=0, atol=1e-4)


def test_factors_are_powers_of_two_and_take_the_outliers_out(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain", dtype="float32")
    checkpoint = Checkpoint(with_outliers(plain, tmp_path / "outliers", share=0.05))
    folded = Folded(checkpoint, decoder_from_config(checkpoint.config))
    for name in ("model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"):
        tensor = checkpoint.tensor(name)
        before = tensor.read_float32()
        after = np.concatenate(list(folded.smoothing.slices(Weight(name, tensor.shape), 300)))
        with np.errstate(divide="ignore", invalid="ignore"):
            exponents = np.log2(before / after)
        exponents = exponents[np.isfinite(exponents)]
        np.testing.assert_array_equal(exponents, np.rint(exponents))
        sizes_before, sizes_after = (np.abs(values.reshape(len(values), -1)).max(1) for values in (before, after))
        assert sizes_before.max() / np.median(sizes_before) > 50
        assert sizes_after.max() / np.median(sizes_after) < 8


def test_a_model_without_outliers_is_left_as_it_is(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "plain", dtype="float32"))
    folded = Folded(checkpoint, decoder_from_config(checkpoint.config))
    for name, tensor in checkpoint.tensors.items():
        after = np.concatenate(list(folded.smoothing.slices(Weight(name, tensor.shape), 10_000)))
        np.testing.assert_array_equal(after, tensor.read_float32())


def test_channels_of_zeros_get_finite_factors(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain", dtype="float32")
    checkpoint = Checkpoint(with_outliers(plain, tmp_path / "dead", factor=0.0 + 1e-30, share=0.2))
    folded = Folded(checkpoint, decoder_from_config(checkpoint.config))
    for name, tensor in checkpoint.tensors.items():
        for values in folded.smoothing.slices(Weight(name, tensor.shape), 10_000):
            assert np.isfinite(values).all()


@dataclass(frozen=True)
class OtherDecoder:
    """What Qwen2 lacks: a layer norm with a bias, a norm with an offset, a mixture of experts, a norm read twice."""

    @property
    def geometry(self) -> Geometry:
        raise NotImplementedError

    def logits(self, ops: Ops[V]) -> V:
        x = ops.embedding(Weight("table", (20, 24)), "token_ids")
        x = ops.layer_norm(x, Weight("ln", (24,)), Weight("ln_bias", (24,)), eps=1e-6)
        (x,) = ops.linear(x, [layer("a", 24)], shard="column")
        x = ops.rms_norm(x, Weight("offset_norm", (24,)), eps=1e-6, offset=1.0)
        experts = tuple(
            GatedMLP(gate=layer(f"{i}.gate", 40), up=layer(f"{i}.up", 40), down=layer(f"{i}.down", 24, 40))
            for i in range(2)
        )
        router = Weight("router", (2, 24))
        mixture = Mixture(router=router, experts=experts, num_chosen=1, normalize=True, activation="silu")
        x = ops.moe(x, mixture)
        x = ops.rms_norm(x, Weight("read_by_an_addition", (24,)), eps=1e-6)
        (y,) = ops.linear(x, [layer("b", 24)], shard="column")
        x = ops.rms_norm(ops.add(x, y), Weight("head_norms", (12,)), eps=1e-6, groups=2)
        (logits,) = ops.linear(x, [layer("head", 20)], shard="vocab")
        return logits


def layer(name: str, out_features: int, in_features: int = 24) -> Linear:
    return Linear(Weight(f"{name}.weight", (out_features, in_features)), Weight(f"{name}.bias", (out_features,)))


def test_biases_offsets_and_experts_are_folded_and_nothing_else() -> None:
    folds = find_folds(OtherDecoder(), PrecisionPlan("int8"))
    assert {fold.source.name: {weight.name for weight in fold.targets} for fold in folds} == {
        "ln": {"a.weight"},
        "offset_norm": {"router", *(f"{i}.{part}.weight" for i in (0, 1) for part in ("gate", "up"))},
        "0.up.weight": {"0.down.weight"},
        "1.up.weight": {"1.down.weight"},
    }


def test_what_a_channel_gives_is_the_same_before_and_after() -> None:
    random = np.random.default_rng(0)
    values: dict[Weight, Float32Array] = {}

    def read(weight: Weight, max_bytes: int) -> Iterator[Float32Array]:
        if weight not in values:
            values[weight] = random.standard_normal(weight.shape).astype(np.float32)
            values[weight][random.integers(len(values[weight]), size=2)] *= 1000
        yield from np.array_split(values[weight], 2)

    folds = find_folds(OtherDecoder(), PrecisionPlan("int8"))
    smoothing = Smoothing(folds, read)
    for fold in folds:
        shape = (-1, 1) if len(fold.source.shape) == 1 else fold.source.shape
        source = np.concatenate(list(smoothing.slices(fold.source, 100, fold.offset))).reshape(shape)
        ratios = ((values[fold.source] + np.float32(fold.offset)).reshape(shape) / source)[:, 0]
        assert ratios.max() >= 4, "there was an outlier"
        before = smoothing_free(fold.source, folds)
        if fold.bias is not None:
            bias = np.concatenate(list(smoothing.slices(fold.bias, 100)))
            np.testing.assert_array_equal(bias * ratios, values[fold.bias])
        for target in fold.targets:
            columns = np.concatenate(list(smoothing.slices(target, 100)))
            rows = smoothing_free(target, folds)
            if before and rows:
                np.testing.assert_array_equal(columns, values[target] * ratios)


def smoothing_free(weight: Weight, folds: list[Fold]) -> bool:
    """Whether no other fold touches the weight on its other side."""
    touched = [fold for fold in folds if weight == fold.source or weight in fold.targets]
    return len(touched) == 1
