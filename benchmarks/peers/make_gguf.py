"""A GGUF file of a checkpoint whose tokenizer llama.cpp does not know, as those of benchmarks/make_checkpoint.py.

    python benchmarks/peers/make_gguf.py LLAMA_CPP CHECKPOINT --outtype bf16 --outfile model.gguf

LLAMA_CPP is the folder of llama.cpp's source; what follows goes to its convert_hf_to_gguf.py, which recognizes a
tokenizer by a hash and refuses others. Prompts of a comparison are token ids, so how text is split does not matter:
Qwen2's way is written down. Runs where that script's requirements are installed (torch, transformers, sentencepiece).
"""

import importlib
import runpy
import sys
from pathlib import Path

source = sys.argv[1]
sys.path.insert(0, source)
importlib.import_module("conversion.base").TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv = sys.argv[1:]
runpy.run_path(str(Path(source, "convert_hf_to_gguf.py")), run_name="__main__")
