"""export_model: what it writes, that it writes all of it or nothing, and in little memory."""

import hashlib
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from export import export_model
from export.folder import new_folder
from export.weight_plan import ALIGNMENT
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import CheckpointError, ConfigError, ExportError, ModelNotFoundError, UnsupportedModelError
from nanovllm.model_info import ModelInfo, TensorInfo
from nanovllm.testing import tiny_config, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "some-model")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [7, 8], "temperature": 0.7, "top_k": 20, "transformers_version": "5"})
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "optimizer.pt").write_text("not wanted")
    return folder


def export(checkpoint: Path, **options: Any) -> Path:
    return export_model(checkpoint, checkpoint.parent / "out", progress=False, **options).folder


def stored(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """A weight as it lies in the file, found through the graph's reference to it."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (proto,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    where = {entry.key: entry.value for entry in proto.external_data}
    data = np.fromfile(folder / where["location"], "<f4", int(where["length"]) // 4, offset=int(where["offset"]))
    return data.reshape(tuple(proto.dims))


def test_the_folder_holds_the_model_its_facts_and_its_tokenizer(checkpoint: Path) -> None:
    names = {file.name for file in export(checkpoint).iterdir()}
    assert names == {
        *("model.onnx", "model.onnx.data", "model_info.json"),
        *("tokenizer.json", "chat_template.jinja", "generation_config.json"),
    }


def test_the_onnx_checker_passes_with_shape_inference(checkpoint: Path) -> None:
    folder = export(checkpoint)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert model.ir_version == 11
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 23), ("nanovllm", 1)}
    assert [function.name for function in model.functions] == ["PagedAttention_v1", "GatedSilu_v1"]


def test_inputs_and_outputs_are_the_contract(checkpoint: Path) -> None:
    folder = export(checkpoint)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    pools = [f"{kind}_cache.{layer}" for layer in (0, 1) for kind in ("key", "value")]
    assert [value.name for value in graph.input] == [
        *("token_ids", "positions", "query_start", "context_lens", "block_tables", "slot_mapping", "logits_indices"),
        *pools,
    ]
    assert [value.name for value in graph.output] == ["logits", *(pool.replace("cache", "cache_out") for pool in pools)]
    info = ModelInfo.load(folder)
    for values, tensors in ((graph.input, info.inputs), (graph.output, info.outputs)):
        assert [described(value) for value in values] == list(tensors)


def described(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorInfo(name=value.name, dtype=dtype, shape=tuple(d.dim_param or d.dim_value for d in kind.shape.dim))


def test_model_info_says_what_the_checkpoint_says(checkpoint: Path) -> None:
    folder = export(checkpoint, block_size=16, max_model_len=100)
    info = ModelInfo.load(folder)
    assert (info.model_name, info.model_type, info.vocab_size) == ("some-model", "qwen2", 211)
    assert (info.hidden_size, info.num_layers, info.num_heads, info.num_kv_heads, info.head_dim) == (48, 2, 6, 2, 16)
    assert info.eos_token_ids == (7, 8), "generation_config.json comes before config.json"
    assert (info.bos_token_id, info.pad_token_id) == (None, None)
    assert (info.max_model_len, info.kv_cache.block_size) == (100, 16)
    assert info.rope == {"theta": 10000.0, "dim": 16, "interleaved": False, "scaling": None}
    assert info.generation_defaults == {"temperature": 0.7, "top_k": 20}
    assert info.tokenizer_files == ("tokenizer.json", "chat_template.jinja")
    assert info.producer.keys() == {"nanovllm", "onnx", "numpy"}
    assert (info.dtype, info.device, info.quantization) == ("float32", "cpu", None)


def test_eos_comes_from_the_config_where_nothing_else_says_it(tmp_path: Path) -> None:
    assert ModelInfo.load(export(write_checkpoint(tmp_path / "model"))).eos_token_ids == (2,)
    folder = write_checkpoint(tmp_path / "endless", tiny_config(eos_token_id=None))
    assert ModelInfo.load(export_model(folder, tmp_path / "endless-out", progress=False).folder).eos_token_ids == ()


def test_the_weights_are_described_by_size_and_hash(checkpoint: Path) -> None:
    folder = export(checkpoint)
    (weights,) = ModelInfo.load(folder).weights
    data = (folder / weights.file).read_bytes()
    assert (weights.num_bytes, weights.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_every_weight_starts_at_a_page_and_a_tied_table_is_there_once(checkpoint: Path) -> None:
    model = onnx.load(export(checkpoint) / "model.onnx", load_external_data=False)
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer]
    assert all(int(place["offset"]) % ALIGNMENT == 0 for place in places)
    assert [tuple(tensor.dims) for tensor in model.graph.initializer].count((211, 48)) == 1


def test_bf16_weights_are_stored_exactly_and_merged_by_rows(checkpoint: Path) -> None:
    folder = export(checkpoint)
    source = Checkpoint(checkpoint)
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    merged = np.concatenate([source.tensor(name).read_float32() for name in names])
    np.testing.assert_array_equal(stored(folder, "weights/" + " + ".join(names)), merged)


def test_the_report_counts_parameters_and_bytes(checkpoint: Path) -> None:
    report = export_model(checkpoint, checkpoint.parent / "out", progress=False)
    num_parameters = sum(int(np.prod(tensor.shape)) for tensor in Checkpoint(checkpoint).tensors.values())
    assert report.num_parameters == num_parameters
    assert report.num_bytes == sum(file.stat().st_size for file in report.folder.iterdir())
    assert report.seconds > 0


def test_an_existing_export_is_kept_unless_forced(checkpoint: Path) -> None:
    folder = export(checkpoint)
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(ExportError, match="--force"):
        export(checkpoint)
    assert (folder / "mine.txt").exists()
    export(checkpoint, force=True)
    assert not (folder / "mine.txt").exists()
    assert {path.name for path in checkpoint.parent.iterdir()} == {"some-model", "out"}


def test_force_replaces_nothing_but_an_export(checkpoint: Path) -> None:
    (checkpoint.parent / "out").mkdir()
    (checkpoint.parent / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="is no exported model"):
        export(checkpoint, force=True)
    assert (checkpoint.parent / "out" / "thesis.tex").exists()


def test_an_empty_folder_is_filled(checkpoint: Path) -> None:
    (checkpoint.parent / "out").mkdir()
    assert (export(checkpoint) / "model.onnx").exists()


def test_a_failure_late_in_the_export_leaves_nothing(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match="eos_token_id is '</s>'"):
        export(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["some-model"]


def write_half(folder: Path, error: BaseException) -> None:
    with new_folder(folder, force=True) as part:
        (part / "model.onnx").write_text("half")
        raise error


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, ExportError)])
def test_an_interruption_leaves_the_old_export(
    checkpoint: Path, error: type[BaseException], raised: type[BaseException]
) -> None:
    folder = export(checkpoint)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(raised):
        write_half(folder, error("stop"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {path.name for path in checkpoint.parent.iterdir()} == {"some-model", "out"}


def test_the_slower_of_two_exports_to_one_folder_changes_nothing(checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="exists already"), new_folder(checkpoint.parent / "out", force=False):
        folder = export(checkpoint)
    assert ModelInfo.load(folder).model_name == "some-model"
    assert {path.name for path in checkpoint.parent.iterdir()} == {"some-model", "out"}


def test_the_default_output_is_in_the_working_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint)
    report = export_model(".", progress=False)
    assert (report.folder, report.model_name) == (Path("models/some-model-onnx"), "some-model")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int3"}, "precision is 'int3'; this version exports fp32"),
        ({"block_size": 0}, "block_size is 0"),
        ({"max_model_len": 257}, "max_model_len is 257; this checkpoint was made for at most 256"),
        ({"max_model_len": 0}, "max_model_len is 0"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_written(
    checkpoint: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        export(checkpoint, **options)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["some-model"]


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path: Path, checkpoint: Path) -> None:
    rewrite_config(checkpoint, model_type="mamba")
    with pytest.raises(UnsupportedModelError, match="model_type 'mamba' is not supported; supported: qwen2"):
        export(checkpoint)
    rewrite_config(checkpoint, use_sliding_window=True)
    with pytest.raises(CheckpointError, match=r"config.json: use_sliding_window"):
        export(checkpoint)
    rewrite_config(checkpoint, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"config.json implies"):
        export(checkpoint)
    with pytest.raises(ModelNotFoundError):
        export_model(tmp_path / "nothing", progress=False)


def rewrite_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(tiny_config(**changes)))


def test_an_export_is_not_exported_again(checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="exported model already"):
        export_model(export(checkpoint), checkpoint.parent / "twice", progress=False)


def test_a_weight_much_larger_than_a_slice_takes_little_memory(tmp_path: Path) -> None:
    config = tiny_config(vocab_size=400_000, num_hidden_layers=1)  # 77 MB of fp32
    folder = write_checkpoint(tmp_path / "large", config)
    tracemalloc.start()
    report = export_model(folder, tmp_path / "out", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 45e6 < 70e6 < report.num_bytes


def test_neither_torch_nor_a_runtime_is_loaded(checkpoint: Path) -> None:
    script = """
import sys
from export import export_model
from export.folder import new_folder
export_model(sys.argv[1], sys.argv[2], progress=False)
print(sorted({"torch", "transformers", "onnxruntime", "backends"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", script, str(checkpoint), str(checkpoint.parent / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_commit_of_the_hub_is_recorded(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "models--org--name" / "snapshots" / "0123abc")
    info = ModelInfo.load(export_model(folder, tmp_path / "out", progress=False).folder)
    assert info.source_revision == "0123abc"
