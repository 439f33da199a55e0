"""The plugin "torch": what it says it can load, what it refuses, and that it does not push in front of others."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from torch_driver import load_runner

from backends.pytorch.plugin import nanovllm_model_runners
from nanovllm import LLM, SamplingParams
from nanovllm.errors import ConfigError, ModelError, UnsupportedModelError
from nanovllm.plugins import ModelSource, Verdict
from nanovllm.plugins.manager import PluginManager
from nanovllm.testing import ReferenceModel, teacher_forced_logits, tiny_config, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def can_load(folder: Path | None) -> Verdict:
    (plugin,) = nanovllm_model_runners()
    return plugin.can_load(ModelSource("model", folder))


def test_it_loads_checkpoints_and_says_why_it_cannot_load_others(checkpoint: Path, tmp_path: Path) -> None:
    assert can_load(checkpoint) == Verdict(True, "a qwen2 checkpoint")
    assert can_load(None) == Verdict(False, "it needs a model folder")
    (tmp_path / "empty").mkdir()
    assert "config.json is not in" in can_load(tmp_path / "empty").reason
    (checkpoint / "config.json").write_text(json.dumps(tiny_config(model_type="mamba")))
    assert "'mamba' has no architecture file; supported: qwen2" in can_load(checkpoint).reason
    for text in ("{", "[]"):
        (checkpoint / "config.json").write_text(text)
        assert "cannot be read" in can_load(checkpoint).reason
    (checkpoint / "config.json").write_text(json.dumps(tiny_config()))
    (checkpoint / "model.safetensors").unlink()
    assert "model.safetensors" in can_load(checkpoint).reason


def test_without_torch_it_says_how_to_get_it(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find_all_but_torch(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else find_spec(name, package)

    monkeypatch.setattr("backends.pytorch.plugin.find_spec", find_all_but_torch)
    assert can_load(checkpoint) == Verdict(False, "torch is not installed: pip install 'nanovllm[torch]'")
    (plugin,) = nanovllm_model_runners()
    assert plugin.status is not None
    assert plugin.status() == "torch is not installed: pip install 'nanovllm[torch]'"
    with pytest.raises(ModelError, match="torch is not installed"):
        load_runner(checkpoint)


def test_asking_it_loads_nothing_heavy(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
from backends.pytorch.plugin import nanovllm_model_runners
from nanovllm.plugins import ModelSource
(plugin,) = nanovllm_model_runners()
assert plugin.can_load(ModelSource("model", Path(sys.argv[1]))).loadable and plugin.status()
print(sorted({"onnxruntime", "onnx", "torch", "export", "ml_dtypes"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", script, str(checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"


def test_where_both_are_installed_a_checkpoint_goes_to_onnxruntime_unless_torch_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plugins = PluginManager.discover()
    source = ModelSource("model", checkpoint)
    assert plugins.select_model_runner(source, None).name == "onnxruntime"
    assert plugins.select_model_runner(source, "torch").name == "torch"


def test_its_status_says_whether_it_runs_on_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("backends.pytorch.cuda_presence.find_spec", lambda name: True)
    for build, visible, on_cuda in (
        ("2.13.0", "0", True),
        ("2.13.0+cu130", "0", True),
        ("2.13.0+cpu", "0", False),
        ("2.13.0", "", False),
        ("2.13.0", "-1", False),
    ):
        monkeypatch.setattr("backends.pytorch.cuda_presence.version", lambda name, build=build: build)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        (plugin,) = nanovllm_model_runners()
        assert plugin.status is not None
        assert ("CUDA" in plugin.status()) == on_cuda, (build, visible)


def test_compiled_chains_give_the_logits_of_plain_ones(tmp_path: Path) -> None:
    """In a process of its own, since torch warns of its own deprecations while it compiles."""
    folder = write_checkpoint(tmp_path / "model", tiny_config(model_type="qwen3"))
    program = """
import sys
from pathlib import Path
from nanovllm.testing import teacher_forced_logits
from tests.pytorch.torch_driver import load_runner
plain, fused = load_runner(Path(sys.argv[1])), load_runner(Path(sys.argv[1]), torch_compile=True)
for count in (20, 3, 1):
    logits, expected = (teacher_forced_logits(runner, list(range(count)), block_size=8) for runner in (fused, plain))
    assert abs(logits - expected).max() < 1e-4
from torch._dynamo.utils import counters
print(counters["stats"]["unique_graphs"])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", program, str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if "compiler" in printed.stderr and "not found" in printed.stderr:
        pytest.skip("torch.compile needs a C++ compiler: none is here")
    assert printed.returncode == 0, printed.stderr
    assert int(printed.stdout) > 0, "nothing was compiled"


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtyp": "float32"}, "unknown option 'dtyp' of backend 'torch'. Did you mean 'dtype'"),
        ({"dtype": "float8"}, "option 'dtype' of backend 'torch' is 'float8'; allowed: 'auto', 'float32'"),
        ({"dtype": ["float32"]}, "option 'dtype' of backend 'torch' is"),
        ({"device": "tpu"}, "option 'device' of backend 'torch' is 'tpu'; allowed: 'auto', 'cpu', 'cuda', 'cuda:0'"),
        ({"device": "cuda:"}, "option 'device' of backend 'torch' is 'cuda:'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but torch"),
        ({"enforce_eager": 1}, "option 'enforce_eager' of backend 'torch' is 1; allowed: True, False"),
        ({"gpu_memory_utilization": 1.5}, "is 1.5; allowed: a number above 0 and up to 1"),
        ({"gpu_memory_utilization": 0.5, "device": "cpu"}, "but the model runs on the CPU. Set kv_cache_memory_bytes"),
        ({"quantization": "int2"}, "allowed: None, 'int8', 'int4'"),
    ],
)
def test_options_that_it_does_not_know_are_refused(checkpoint: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        load_runner(checkpoint, **options)


def test_a_model_that_no_architecture_file_defines_is_unsupported(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps(tiny_config(model_type="mamba")))
    with pytest.raises(UnsupportedModelError, match="mamba"):
        load_runner(checkpoint)


def test_the_length_that_a_model_is_built_for_picks_the_factors_of_longrope(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
    config = tiny_config(
        model_type="phi3",
        num_attention_heads=3,
        num_key_value_heads=3,
        rope_scaling={"type": "longrope", **factors},
        original_max_position_embeddings=32,
    )
    folder = write_checkpoint(tmp_path / "model", config)
    tokens = list(range(20))
    for max_model_len in (None, 32):
        runner = load_runner(folder, max_model_len=max_model_len)
        logits = teacher_forced_logits(runner, tokens)
        runner.close()
        for other in (None, 32):
            expected = ReferenceModel(folder, max_model_len=other).logits(tokens)
            assert (abs(logits - expected).max() < 1e-4) == (other == max_model_len)


def test_the_model_in_the_box_answers() -> None:
    llm = LLM("tiny-chat", backend="torch", num_threads=1)
    try:
        (output,) = llm.chat(
            [[{"role": "user", "content": "What is the capital of France?"}]], SamplingParams(temperature=0)
        )
        assert output.outputs[0].text == "The capital of France is Paris."
    finally:
        llm.close()
