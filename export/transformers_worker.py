"""A program: a checkpoint in transformers and float32, read by the process that started it over pipes.

    python transformers_worker.py FOLDER

Writes one line of JSON, {"transformers": its version}. Then for each line of JSON on stdin, a list of token ids and the
first index wanted, one line with the shape and after it the logits, float32 in row-major order. Where something fails,
the line is {"error": why}, and the program ends, as it does with its stdin.

It imports nothing of this project, so that it runs as a file. It is the one place of the exporter where torch is
imported: in a process of its own, whose memory is free again once it has ended.
"""

import json
import os
import sys
from typing import Any, BinaryIO


def main(folder: str) -> int:
    """Serves `folder` until stdin ends; returns the exit code."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    try:
        _serve(folder, answers)
    except Exception as error:  # whatever a library raises is the reader's to report
        _write_line(answers, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _serve(folder: str, answers: BinaryIO) -> None:
    import torch
    from transformers import __version__

    model = _load(folder)
    _write_line(answers, {"transformers": __version__})
    for line in sys.stdin:
        token_ids, first = json.loads(line)
        with torch.inference_mode():
            logits = model(torch.tensor([token_ids]), use_cache=False).logits[0, first:]
        rows = logits.to(torch.float32).contiguous().numpy()
        _write_line(answers, rows.shape)
        answers.write(rows.data)
        answers.flush()


def _load(folder: str) -> Any:
    """The model. Raises what transformers raises, and `ValueError` where it would make weights up."""
    import torch
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained  # declared to return the model, as without output_loading_info
    model, found = load(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # the definition; others leave parts out for some families
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it finds no weights for {', '.join(missing[:3])}")
    return model.eval()


def _write_line(answers: BinaryIO, document: Any) -> None:
    answers.write(json.dumps(document).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
