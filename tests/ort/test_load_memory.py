"""Loading an export maps its weights and copies none of them, where the compiled kernels run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backends.ort.kernels.library import kernel_status
from export import export_model

LOAD = """
import json, sys
from pathlib import Path
import onnxruntime
from backends.ort.plugin import nanovllm_model_runners
from nanovllm.config import EngineConfig
from nanovllm.model_info import ModelInfo
from nanovllm.plugins import ModelSource
from nanovllm.resources import peak_memory_bytes
from nanovllm.testing import teacher_forced_logits

folder = Path(sys.argv[1])
before = peak_memory_bytes()
(plugin,) = nanovllm_model_runners()
runner = plugin.factory(ModelSource(str(folder), folder), EngineConfig(model=str(folder), num_threads=1))
teacher_forced_logits(runner, [1, 2, 3, 4])
weights = sum(file.num_bytes for file in ModelInfo.load(folder).weights)
print(json.dumps({"grown": peak_memory_bytes() - before, "weights": weights}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell a process its peak memory")
@pytest.mark.skipif(kernel_status().library is None, reason="stock operators keep a repacked copy of the weights")
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_loading_and_a_first_step_take_little_more_than_the_weights(tmp_path: Path, precision: str) -> None:
    folder = export_model(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        tmp_path / "export",
        precision=precision,
        random_weights=True,
        progress=False,
    ).folder
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures["weights"] > 50 * 2**20
    assert figures["grown"] < 1.3 * figures["weights"]
