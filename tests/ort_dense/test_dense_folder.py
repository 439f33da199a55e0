"""What a folder is decides what runs it; what is wrong with one is said in words."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from dense_driver import DenseSequence, Work, load_runner, step
from dense_graphs import STYLES, make_model, write_folder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from backends.ort.plugin import nanovllm_model_runners
from export import export_model
from nanovllm import LLM, SamplingParams
from nanovllm.errors import ConfigError, ModelError
from nanovllm.plugins import ModelSource, Verdict
from nanovllm.testing import ReferenceModel, make_engine, run_requests, tiny_config, write_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def can_load(folder: Path) -> Verdict:
    return next(iter(nanovllm_model_runners())).can_load(ModelSource("model", folder))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    graph = onnx.load(folder / "model.onnx")
    change(graph)
    onnx.save(graph, folder / "model.onnx")


# -- recognised ---------------------------------------------------------------------------------------------------


def test_the_three_layouts_are_recognised(checkpoint: Path, tmp_path: Path) -> None:
    genai = write_folder(checkpoint, tmp_path / "genai", STYLES["gqa"], "genai", file="decoder.onnx")
    assert can_load(genai) == Verdict(True, "a decoder as onnxruntime-genai lays it out, decoder.onnx")
    optimum = write_folder(checkpoint, tmp_path / "optimum", STYLES["concat"], "optimum")
    assert can_load(optimum) == Verdict(True, "a decoder as optimum lays it out, model.onnx")
    community = write_folder(checkpoint, tmp_path / "community", STYLES["gqa"], "community", file="model_q4.onnx")
    assert can_load(community) == Verdict(
        True, f"a decoder as onnx-community lays it out, {Path('onnx/model_q4.onnx')}"
    )


@pytest.mark.parametrize("layout", ["genai", "optimum", "community"])
@pytest.mark.parametrize("style", ["gqa", "concat"])
def test_the_user_types_the_folder_and_nothing_else(checkpoint: Path, tmp_path: Path, layout: Any, style: str) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES[style], layout)
    Tokenizer(WordLevel({str(i): i for i in range(211)}, unk_token="0")).save(str(folder / "tokenizer.json"))
    with LLM(str(folder)) as llm:
        outputs = llm.generate([[5, 6, 7], [8, 9]], GREEDY)
    reference = ReferenceModel(checkpoint)
    assert [output.outputs[0].token_ids for output in outputs] == [
        reference.greedy(prompt, 8) for prompt in ([5, 6, 7], [8, 9])
    ]


def test_a_checkpoint_with_a_subfolder_onnx_is_exported_unless_a_file_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path / "cache"))
    (checkpoint / "onnx").mkdir()
    onnx.save(make_model(checkpoint, STYLES["gqa"]), checkpoint / "onnx" / "model_q4.onnx")
    assert "exported on first use" in can_load(checkpoint).reason
    runner = load_runner(checkpoint)
    assert runner.kv is None
    runner.close()
    runner = load_runner(checkpoint, model_file="model_q4.onnx")
    assert runner.kv == "unshared"
    runner.close()


def test_the_most_precise_file_is_taken_or_the_one_that_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for file, style in (("model_q4.onnx", "gqa"), ("model.onnx", "concat"), ("model_fp16.onnx", "gqa in float16")):
        write_folder(checkpoint, folder, STYLES[style], "community", file=file)
    assert can_load(folder).reason.endswith("model.onnx")
    for options, dtype in (({}, "float32"), ({"model_file": "model_fp16.onnx"}, "float16")):
        runner = load_runner(folder, **options)
        assert runner.model_info.kv_cache.dtype == dtype
        runner.close()
    (folder / "onnx" / "model.onnx").unlink()
    assert can_load(folder).reason.endswith("model_fp16.onnx")


@pytest.mark.parametrize("name", ["model_q8.onnx", "../model.onnx", ""])
def test_a_file_that_is_not_there_is_refused_with_those_that_are(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"], "community")
    if name == "":
        load_runner(folder, model_file=name).close()  # as where none is named
        return
    with pytest.raises(ConfigError, match=r"model_file is .*onnx.model\.onnx"):
        load_runner(folder, model_file=name)


def test_a_file_is_not_to_be_named_for_our_own_exports(checkpoint: Path, tmp_path: Path) -> None:
    folder = export_model(checkpoint, tmp_path / "export", progress=False).folder
    with pytest.raises(ConfigError, match="model_file"):
        load_runner(folder, model_file="model.onnx")
    with pytest.raises(ConfigError, match="must be a file's name"):
        load_runner(folder, model_file=True)


def test_asking_it_loads_nothing_heavy(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"])
    script = """
import sys
from pathlib import Path
from backends.ort.plugin import nanovllm_model_runners
from nanovllm.plugins import ModelSource
(plugin,) = nanovllm_model_runners()
assert plugin.can_load(ModelSource("model", Path(sys.argv[1]))).loadable
print(sorted({"onnxruntime", "onnx", "torch", "export", "ml_dtypes"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", script, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"


# -- what the configs say -----------------------------------------------------------------------------------------


def test_genai_config_says_where_a_text_ends_and_how_long_it_may_be(checkpoint: Path, tmp_path: Path) -> None:
    runner = load_runner(write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"]))
    info = runner.model_info
    assert (info.eos_token_ids, info.bos_token_id, info.pad_token_id) == ((2, 7), 1, 0)
    assert (info.max_model_len, info.vocab_size, info.model_type) == (256, 211, "qwen2")
    assert (info.num_layers, info.num_heads, info.num_kv_heads, info.head_dim, info.hidden_size) == (2, 6, 2, 16, 48)
    assert info.generation_defaults == {"do_sample": False, "top_k": 50}
    runner.close()


def test_generation_config_comes_before_config(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["concat"])
    for expected in ((2,), (3, 4)):
        runner = load_runner(folder)
        info = runner.model_info
        assert info.eos_token_ids == expected
        assert (info.max_model_len, info.num_kv_heads, info.head_dim) == (256, 2, 16)
        runner.close()
        (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4], "pad_token_id": null}')


# -- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("model"), "has no object 'model'"),
        (lambda d: d["model"].pop("decoder"), "has no object 'decoder'"),
        (lambda d: d["model"].update(vision={}), r"several graphs \(vision\)"),
        (lambda d: d["model"]["decoder"].update(pipeline=[]), "several graphs"),
        (lambda d: d["model"]["decoder"].update(filename="other.onnx"), "filename is 'other.onnx'"),
    ],
)
def test_a_genai_config_that_cannot_be_run_is_no_loadable_folder(
    checkpoint: Path, tmp_path: Path, change: Any, message: str
) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"])
    change_json(folder / "genai_config.json", change)
    with pytest.raises(ModelError, match=message):
        load_runner(folder)
    assert not can_load(folder).loadable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].pop("context_length"), "no model.context_length"),
        (lambda d: d["model"].update(context_length="long"), "context_length is 'long'"),
        (lambda d: d["model"].update(eos_token_id="</s>"), "eos_token_id is '</s>'"),
        (lambda d: d["model"]["decoder"].pop("num_key_value_heads"), "says no num_key_value_heads"),
    ],
)
def test_what_is_missing_in_a_genai_config_is_named(
    checkpoint: Path, tmp_path: Path, change: Any, message: str
) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"])
    change_json(folder / "genai_config.json", change)
    with pytest.raises(ModelError, match=message):
        load_runner(folder)


def add_input(name: str) -> Callable[[onnx.ModelProto], object]:
    entry = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1])
    return lambda model: model.graph.input.append(entry)


def drop_input(name: str) -> Callable[[onnx.ModelProto], object]:
    """Makes it a constant, so that the graph stays valid."""

    def change(model: onnx.ModelProto) -> None:
        (entry,) = [entry for entry in model.graph.input if entry.name == name]
        model.graph.input.remove(entry)
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1, 2], [1, 1]))

    return change


def drop_output(model: onnx.ModelProto) -> None:
    model.graph.output.pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_input("use_cache_branch"), "merged decoder with a use_cache_branch"),
        (add_input("inputs_of_tomorrow"), "does not know: inputs_of_tomorrow"),
        (drop_input("attention_mask"), "lacks the inputs or outputs attention_mask"),
        (drop_output, r"lacks the inputs or outputs present\.1\.value"),
    ],
)
def test_a_graph_of_another_interface_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, change: Any, message: str
) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"])
    change_graph(folder, change)
    with pytest.raises(ModelError, match=message):
        load_runner(folder)


def test_a_graph_without_a_cache_is_refused_with_the_way_to_export_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["concat"])
    x = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "s"])
    y = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, ["b", "s"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["input_ids"], ["logits"])], "g", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    with pytest.raises(ModelError, match="text-generation-with-past"):
        load_runner(folder)


def test_a_graph_that_fails_at_once_is_a_model_error(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"])
    change_json(folder / "genai_config.json", lambda d: d["model"]["decoder"].update(num_key_value_heads=5))
    with pytest.raises(ModelError, match=r"model.onnx does not run as a decoder with a KV cache"):
        load_runner(folder)


def test_a_broken_file_is_a_model_error(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_folder(checkpoint, tmp_path / "folder", STYLES["gqa"])
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=r"cannot load .*model.onnx"):
        load_runner(folder)
    (folder / "genai_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_runner(folder)


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["gqa", "concat"])
def long_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of 32,768 tokens, of which each takes 512 bytes of cache."""
    config = tiny_config(max_position_embeddings=32768)
    checkpoint = write_checkpoint(tmp_path / "long", config)
    return write_folder(checkpoint, tmp_path / "folder", STYLES[request.param])


def test_small_requests_take_little_memory_in_a_model_of_long_contexts(long_folder: Path) -> None:
    runner = load_runner(long_folder)
    tracemalloc.start()
    try:
        engine = make_engine(runner, kv="unshared")
        assert engine.max_model_len == 32768
        outputs = run_requests(engine, [[i + 1] * 20 for i in range(64)], GREEDY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    engine.close()
    assert len(outputs) == 64
    used = 64 * 28 * 512
    assert peak < 10 * used + 2**20, f"a full cache for one sequence alone would be {32768 * 512}"


def test_where_memory_is_short_requests_are_preempted_and_not_refused(long_folder: Path) -> None:
    alone = []
    prompts = [[i + 1] * 20 for i in range(8)]
    params = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    for batch in ([prompt] for prompt in prompts):
        engine = make_engine(load_runner(long_folder), kv="unshared")
        alone += run_requests(engine, batch, params)
        engine.close()
    runner = load_runner(long_folder)
    engine = make_engine(
        runner, kv="unshared", max_model_len=256, block_size=16, kv_cache_memory_bytes=runner.kv_bytes_per_block(400)
    )
    outputs = run_requests(engine, prompts, params)
    assert engine.stats().num_preemptions > 0
    engine.close()
    assert [output.outputs[0].token_ids for output in outputs] == [output.outputs[0].token_ids for output in alone]


def test_decodes_of_the_same_sequences_copy_no_cache(long_folder: Path) -> None:
    runner = load_runner(long_folder)
    runner.allocate_kv_cache(100, 512)
    sequences = [DenseSequence(i, [i + 1] * 400) for i in range(8)]
    for sequence in sequences:
        step(runner, [Work(sequence, 350 + sequence.seq_id, "none")])
    for _ in range(3):  # the first ones gather the sequences, and allocate what later ones use in turn
        step(runner, [Work(sequence) for sequence in sequences])
    tracemalloc.start()
    try:
        for _ in range(20):
            step(runner, [Work(sequence) for sequence in sequences])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    runner.close()
    assert peak < 8 * 350 * 512 / 8, "more than what the tokens, the masks and the logits of a step take"


def test_the_memory_of_finished_sequences_comes_back(long_folder: Path) -> None:
    runner = load_runner(long_folder)
    runner.allocate_kv_cache(1000, 64)
    tracemalloc.start()
    try:
        finished: list[int] = []
        for wave in range(40):
            sequences = [DenseSequence(8 * wave + i, [i + 1] * 60) for i in range(8)]
            step(runner, [Work(sequence, 59 - sequence.seq_id % 8) for sequence in sequences], finished)
            step(runner, [Work(sequence) for sequence in sequences])
            finished = [sequence.seq_id for sequence in sequences]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    runner.close()
    assert held < 8 * (8 * 64 * 512), "more than eight of forty waves"
