"""The dtype of the KV cache: chosen when the model is loaded, honoured or refused, and worth its memory."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from paged_driver import PagedSequence, Work, load_runner, step

from backends.ort.kv_graph import graph_with_kv_dtype, info_with_kv_dtype
from export import export_model
from export.paged_attention import KV_DTYPES, KVDType
from nanovllm import LLM
from nanovllm.cli import main
from nanovllm.config import EngineConfig
from nanovllm.errors import ConfigError, ModelError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins import LogitsModelRunner
from nanovllm.testing import ModelRunnerConformance, ReferenceModel, tiny_config, write_checkpoint

BLOCK_SIZE = 8
ROUNDING = {"float32": 1e-5, "bfloat16": 0.016, "int8": 0.035}
"""How far logits may be on average from the oracle's, whose keys and values are never rounded; they deviate by 1.6."""

every_dtype = pytest.mark.parametrize("kv_dtype", KV_DTYPES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("kv") / "checkpoint", tiny_config())


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    return export_model(checkpoint, checkpoint.parent / "export", progress=False).folder


@pytest.fixture(params=["kernels", "stock"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled kernels, where they are built, and without."""
    if request.param == "stock":
        monkeypatch.setenv("NANOVLLM_KERNELS", "0")


def logits_of(runner: LogitsModelRunner, chunks: tuple[int, ...]) -> np.ndarray:
    """Of a sequence in scattered blocks, every position, computed in chunks beside another sequence."""
    runner.allocate_kv_cache(40, BLOCK_SIZE)
    first = PagedSequence(np.random.default_rng(1).integers(0, 211, 90).tolist(), list(range(20, 0, -1)))
    other = PagedSequence(np.random.default_rng(2).integers(0, 211, 90).tolist(), list(range(21, 40)))
    rows = []
    for size in chunks:
        rows += step(runner, [Work(other, 3, "none"), Work(first, size, "all")], BLOCK_SIZE)
    return np.stack([row for _, _, row in rows])


@every_dtype
@pytest.mark.usefixtures("runtime")
def test_logits_are_the_oracles_up_to_rounding_however_a_prompt_is_cut(
    checkpoint: Path, folder: Path, kv_dtype: KVDType
) -> None:
    runner = load_runner(folder, kv_cache_dtype=kv_dtype)
    expected = ReferenceModel(checkpoint).logits(np.random.default_rng(1).integers(0, 211, 90).tolist())
    whole, chunked = logits_of(runner, (90,)), logits_of(runner, (40, 1, 1, 33, 15))
    assert np.abs(whole - expected).mean() < ROUNDING[kv_dtype]
    np.testing.assert_allclose(chunked, whole, atol=1e-3, rtol=0)
    runner.close()


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_smaller_caches_do_round(checkpoint: Path, folder: Path, kv_dtype: KVDType) -> None:
    """Else the tests beside this one would pass on a cache that is still float32."""
    runner = load_runner(folder, kv_cache_dtype=kv_dtype)
    expected = ReferenceModel(checkpoint).logits(np.random.default_rng(1).integers(0, 211, 90).tolist())
    assert np.abs(logits_of(runner, (90,)) - expected).mean() > 1e-3
    runner.close()


@pytest.mark.parametrize(("kv_dtype", "bytes_per_head"), [("float32", 4 * 64), ("bfloat16", 2 * 64), ("int8", 64 + 4)])
def test_bytes_of_a_block_are_those_of_features_and_scales(
    tmp_path: Path, kv_dtype: KVDType, bytes_per_head: int
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config(head_dim=64))
    folder = export_model(checkpoint, tmp_path / "export", progress=False).folder
    runner = load_runner(folder, kv_cache_dtype=kv_dtype)
    info = runner.model_info
    assert runner.kv_bytes_per_block(32) == info.num_layers * 2 * 32 * info.num_kv_heads * bytes_per_head
    assert info.kv_cache.dtype == kv_dtype
    runner.close()


@every_dtype
def test_the_rewritten_graph_is_valid_and_the_file_stays_as_it_is(folder: Path, kv_dtype: KVDType) -> None:
    before = sha256((folder / "model.onnx").read_bytes()).digest()
    graph = graph_with_kv_dtype(folder / "model.onnx", kv_dtype)
    model = onnx.load_from_string(graph or (folder / "model.onnx").read_bytes())
    info = info_with_kv_dtype(ModelInfo.load(folder), kv_dtype)
    for said, found in ((info.inputs, model.graph.input), (info.outputs, model.graph.output)):
        kinds = {v.name: onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower() for v in found}
        assert {tensor.name: tensor.dtype.replace("float32", "float") for tensor in said} == kinds
        assert {tensor.name: len(tensor.shape) for tensor in said} == {
            v.name: len(v.type.tensor_type.shape.dim) for v in found
        }
    assert sha256((folder / "model.onnx").read_bytes()).digest() == before


def test_a_graph_that_cannot_be_read_is_a_model_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=r"model.onnx cannot be read as an ONNX graph.*Export the model again"):
        graph_with_kv_dtype(tmp_path / "model.onnx", "int8")


def test_without_onnx_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"needs the onnx package: pip install 'nanovllm\[cpu\]'"):
        load_runner(folder, kv_cache_dtype="bfloat16")
    load_runner(folder, kv_cache_dtype="float32").close()


def test_a_dtype_that_nobody_knows_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'fp8'; it must be one of 'auto', 'float32', 'bfloat16'"):
        EngineConfig(kv_cache_dtype="fp8")  # type: ignore[arg-type]


def test_the_command_line_hands_it_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "tiny-chat", "--backend", "mock", "--kv-cache-dtype", "bfloat16"]
    assert main(["generate", "Hello", *options]) != 0
    assert "kv_cache_dtype is 'bfloat16'" in capsys.readouterr().err


def test_a_backend_that_does_not_honour_it_refuses() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'int8'; for this model this backend takes 'auto'"):
        LLM("mock", backend="mock", kv_cache_dtype="int8")


MEASURE = """
import json, sys
from pathlib import Path
from backends.ort.plugin import nanovllm_model_runners
from nanovllm.config import EngineConfig
from nanovllm.engine.build import plan_kv_cache
from nanovllm.plugins import ModelSource

folder, dtype, budget = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
config = EngineConfig(model=str(folder), kv_cache_dtype=dtype, kv_cache_memory_bytes=budget, num_threads=1,
                      max_num_seqs=10**6, max_num_batched_tokens=10**6)
(plugin,) = nanovllm_model_runners()
runner = plugin.factory(ModelSource(str(folder), folder), config)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
runner.allocate_kv_cache(1, 32)
before = resident()
geometry = plan_kv_cache(runner, config, "paged", 2**33)
runner.allocate_kv_cache(geometry.num_blocks, geometry.block_size)
print(json.dumps({"bytes": resident() - before, "tokens": geometry.num_blocks * geometry.block_size}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from Linux's /proc")
def test_the_cache_takes_the_memory_that_it_was_given_and_holds_more_tokens(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config(head_dim=64, num_key_value_heads=2))
    folder = export_model(checkpoint, tmp_path / "export", progress=False).folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    budget, tokens = 192 << 20, {}
    for kv_dtype in KV_DTYPES:
        command = [sys.executable, "-c", MEASURE, str(folder), kv_dtype, str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert abs(found["bytes"] / budget - 1) < 0.05, (kv_dtype, found)
        tokens[kv_dtype] = found["tokens"]
    assert tokens["bfloat16"] / tokens["float32"] == pytest.approx(2, rel=0.01)
    assert tokens["int8"] / tokens["float32"] == pytest.approx(4 * 64 / (64 + 4), rel=0.01)


class _Conformance(ModelRunnerConformance):
    kv_dtype: KVDType

    @pytest.fixture(autouse=True)
    def _folder(self, folder: Path) -> None:
        self.folder = folder

    def make_runner(self) -> LogitsModelRunner:
        return load_runner(self.folder, kv_cache_dtype=self.kv_dtype)


class TestBFloat16(_Conformance):
    kv_dtype = "bfloat16"


class TestInt8(_Conformance):
    kv_dtype = "int8"
