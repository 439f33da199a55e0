"""tiny-chat as optimum and onnxruntime-genai export it gives the greedy tokens of transformers; so does our own export,
as tests/parity shows.

The tools live in environments of their own, since optimum-onnx wants an older transformers:

    python -m venv optimum && optimum/bin/pip install torch==2.13.0 && \\
        optimum/bin/pip install optimum-onnx==0.1.0 "transformers<4.58" onnx onnxruntime
    python -m venv genai && genai/bin/pip install torch==2.13.0 && \\
        genai/bin/pip install onnxruntime-genai==0.18.0 onnx onnx-ir transformers onnxruntime
    NANOVLLM_OPTIMUM_PYTHON=optimum/bin/python NANOVLLM_GENAI_PYTHON=genai/bin/python pytest tests/ort_dense
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import resolve_model
from tests.tiny_chat_reference import NUM_TOKENS, QUESTIONS, tiny_chat_reference

GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)

RUN_GENAI = """
import json, sys
import onnxruntime_genai as og
folder, num_tokens, prompts = json.load(sys.stdin)
model = og.Model(folder)
continuations = []
for prompt in prompts:
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + num_tokens)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    continuations.append([int(token) for token in generator.get_sequence(0)][len(prompt):])
print(json.dumps(continuations))
"""


def tool(variable: str, what: str) -> str:
    """The Python of a tool's environment; skips where there is none."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set to the Python of an environment with {what}: see {Path(__file__).name}")
    return python


def run_tool(python: str, *arguments: str, **options: Any) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(Path(python).expanduser().absolute()), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, **options)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return resolve_model("tiny-chat")


@pytest.fixture(scope="module")
def optimum_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = tool("NANOVLLM_OPTIMUM_PYTHON", "optimum-onnx 0.1.0")
    folder = tmp_path_factory.mktemp("optimum") / "tiny-chat"
    what = ["--model", str(checkpoint), "--task", "text-generation-with-past", "--opset", "18", str(folder)]
    run_tool(python, "-m", "optimum.commands.optimum_cli", "export", "onnx", *what)
    return folder


def genai_export(checkpoint: Path, folder: Path, precision: str) -> Path:
    python = tool("NANOVLLM_GENAI_PYTHON", "onnxruntime-genai 0.18")
    what = ["-m", str(checkpoint), "-o", str(folder), "-p", precision, "-e", "cpu", "-c", str(folder.parent / "cache")]
    run_tool(python, "-m", "onnxruntime_genai.models.builder", *what)
    return folder


@pytest.fixture(scope="module")
def genai_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return genai_export(checkpoint, tmp_path_factory.mktemp("genai") / "tiny-chat", "fp32")


@pytest.fixture(scope="module")
def genai_int4_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return genai_export(checkpoint, tmp_path_factory.mktemp("genai-int4") / "tiny-chat", "int4")


def check_folder(folder: Path, **options: Any) -> None:
    """As a user would: in one batch, one at a time, cut into chunks, and by conversation."""
    reference = tiny_chat_reference()
    with LLM(str(folder), **options) as llm:
        outputs = llm.generate(reference.prompts, GREEDY)
        reference.check([output.outputs[0].token_ids for output in outputs])
        assert llm.stats().num_steps < 2 * NUM_TOKENS, "they did not run together"
        alone = [llm.generate([prompt], GREEDY)[0].outputs[0].token_ids for prompt in reference.prompts]
        reference.check(alone)
        chats = llm.chat([[{"role": "user", "content": question}] for question in QUESTIONS], GREEDY)
        assert [output.prompt_token_ids for output in chats] == reference.prompts, "template or tokenizer differ"
        assert chats[0].outputs[0].text == "The capital of France is Paris."
        assert chats[0].outputs[0].finish_reason == "stop"
    with LLM(str(folder), max_num_batched_tokens=16, max_num_seqs=4, **options) as llm:
        outputs = llm.generate(reference.prompts, GREEDY)
        reference.check([output.outputs[0].token_ids for output in outputs])


def test_optimum(optimum_folder: Path) -> None:
    check_folder(optimum_folder)


def test_onnxruntime_genai(genai_folder: Path) -> None:
    check_folder(genai_folder)


def test_the_layout_of_onnx_community(optimum_folder: Path, genai_int4_folder: Path, tmp_path: Path) -> None:
    """One folder, a precise graph that joins its cache and a quantized one that shares it."""
    folder = tmp_path / "tiny-chat"
    shutil.copytree(optimum_folder, folder)
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    check_folder(folder)
    (folder / "onnx" / "model.onnx").unlink()
    shutil.copy(genai_int4_folder / "model.onnx", folder / "onnx" / "model_q4.onnx")
    shutil.copy(genai_int4_folder / "model.onnx.data", folder / "onnx")
    with LLM(str(folder)) as llm:
        (output,) = llm.chat([{"role": "user", "content": QUESTIONS[0]}], GREEDY)
    assert output.outputs[0].text == "The capital of France is Paris."


def test_onnxruntime_genai_in_int4_gives_what_genai_itself_gives(genai_int4_folder: Path) -> None:
    python = tool("NANOVLLM_GENAI_PYTHON", "onnxruntime-genai 0.18")
    prompts = tiny_chat_reference().prompts
    job = json.dumps([str(genai_int4_folder), NUM_TOKENS, prompts])
    expected = json.loads(run_tool(python, "-c", RUN_GENAI, input=job).splitlines()[-1])
    with LLM(str(genai_int4_folder)) as llm:
        alone = [llm.generate([prompt], GREEDY)[0].outputs[0].token_ids for prompt in prompts]
        together = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]
        end = llm.model_info.eos_token_ids

    def without_end(continuations: list[list[int]]) -> list[list[int]]:
        """As genai gives them."""
        return [tokens[:-1] if tokens[-1] in end else tokens for tokens in continuations]

    assert without_end(alone) == expected
    num_equal = sum(a == b for a, b in zip(without_end(together), expected, strict=True))
    assert num_equal >= len(expected) - 1, "a batch may part from a single run at a near-tie, but hardly ever"
