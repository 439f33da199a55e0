"""The kernel library in use: chosen, turned off, refused; what it changes in a runner, and what it must not change."""

import logging
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from backends.ort.kernels import build
from backends.ort.kernels.library import kernel_status
from backends.ort.options import OrtOptions
from backends.ort.plugin import nanovllm_model_runners
from backends.ort.session import open_with_kernels
from backends.ort.step_runs import split_step, whole_step
from export import export_model
from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import resolve_model
from nanovllm.model_info import ModelInfo
from nanovllm.testing import write_checkpoint
from tests.ort.paged_driver import PagedSequence, Work, pack

QUESTIONS = ["What is the capital of France?", "What is 2 + 3?", "Hello!", "What colour is the sky?"]


def use(monkeypatch: pytest.MonkeyPatch, value: str | Path) -> None:
    monkeypatch.setenv("NANOVLLM_KERNELS", str(value))


def test_it_is_used_where_it_works(kernel_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, kernel_library)
    status = kernel_status()
    assert status.library == kernel_library
    assert status.reason in {f"active, with {name} instructions" for name in ("scalar", "avx2", "avx512")}


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 0)
    status = kernel_status()
    assert (status.library, status.reason, status.failure) == (None, "turned off by NANOVLLM_KERNELS=0", False)


def test_a_file_that_is_no_library_is_a_failure_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    use(monkeypatch, broken)
    status = kernel_status()
    assert status.library is None
    assert status.failure
    assert str(broken) in status.reason


def test_the_plugin_says_which_kernels_are_active(kernel_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugin,) = nanovllm_model_runners()
    assert plugin.status is not None
    use(monkeypatch, kernel_library)
    assert plugin.status().startswith("compiled kernels: active, with ")
    use(monkeypatch, 0)
    assert plugin.status() == "compiled kernels: turned off by NANOVLLM_KERNELS=0"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return export_model(write_checkpoint(folder / "checkpoint"), folder / "export", progress=False).folder


def test_a_library_that_does_not_load_costs_a_warning_and_not_the_model(
    exported: Path,
    compiler: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, library = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text(
        'extern "C" __attribute__((visibility("default"))) const char* nanovllm_instruction_set() { return "no"; }\n'
    )
    build.compile_program(compiler, [source], library, ["-shared"])  # it registers no operators
    use(monkeypatch, library)
    logging.getLogger("nanovllm").addHandler(caplog.handler)
    info = ModelInfo.load(exported)
    session, status = open_with_kernels(exported, info, num_threads=1, options=OrtOptions())
    logging.getLogger("nanovllm").removeHandler(caplog.handler)
    assert isinstance(session, onnxruntime.InferenceSession)
    assert status.library is None
    assert "the model does not load with" in caplog.text


def test_a_mixed_step_is_one_run_with_kernels_and_several_without() -> None:
    work = [
        Work(PagedSequence([1] * (new + context), list(range(20 * i, 20 * i + 13)), context), new)
        for i, (new, context) in enumerate([(1, 90), (100, 0), (1, 3), (7, 20)])
    ]
    batch = pack(work, block_size=8)
    no_row = np.zeros(batch.num_logits, np.bool_)
    (run,) = whole_step(batch, 8, no_row)
    assert len(split_step(batch, 8, run_cost=10.0, is_greedy=no_row)) > 1
    for name in ("token_ids", "positions", "query_start", "context_lens", "slot_mapping", "logits_indices"):
        np.testing.assert_array_equal(run.inputs[name], getattr(batch, name))
    np.testing.assert_array_equal(run.inputs["block_tables"], batch.block_tables[:, :13])
    np.testing.assert_array_equal(run.rows, np.arange(4))


@pytest.mark.parametrize(("precision", "near_tie"), [("fp32", 1e-3), ("int8", 0.1), ("int8w", 0.1), ("int4", 0.1)])
def test_greedy_tokens_of_tiny_chat_are_the_same_with_and_without(
    precision: str, near_tie: float, kernel_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to near-ties: a rounding of the last bit can move an input to the next of 255 steps."""
    folder = export_model(resolve_model("tiny-chat"), tmp_path / "export", precision=precision, progress=False).folder
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=5)
    answers = {}
    for kernels in (kernel_library, 0):
        use(monkeypatch, kernels)
        with LLM(str(folder), backend="onnxruntime") as llm:
            answers[str(kernels)] = [output.outputs[0] for output in llm.generate(QUESTIONS, greedy)]
    num_compared = 0
    for ours, stock in zip(answers[str(kernel_library)], answers["0"], strict=True):
        pairs = zip(ours.token_ids, stock.token_ids, strict=True)
        first = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        num_compared += len(stock.token_ids) if first is None else first
        if first is not None:
            likely = stock.logprobs[first]
            assert likely[stock.token_ids[first]].logprob - likely[ours.token_ids[first]].logprob < near_tie
    assert num_compared >= 0.9 * 24 * len(QUESTIONS)


def test_the_library_exports_nothing_that_could_clash(kernel_library: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the symbol table is read from an ELF file")
    content = kernel_library.read_bytes()
    assert b"RegisterCustomOps" in content
    assert b"OrtGetApiBase" not in content, "the library must not need to be linked to ONNX Runtime"
