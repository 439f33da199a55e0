"""What a killed export has left is removed by the next one to the same folder; a running export's is not."""

import os
import time
from pathlib import Path

from export import export_model


def make_part(folder: Path, name: str, age_s: float) -> Path:
    part = folder / name
    part.mkdir()
    file = part / "model.onnx.data"
    file.write_bytes(b"half")
    for path in (file, part):
        os.utime(path, (time.time() - age_s,) * 2)
    return part


def test_an_old_part_goes_and_a_young_one_stays(tmp_path: Path) -> None:
    old = make_part(tmp_path, ".out.00000000.partial", 7200)
    young = make_part(tmp_path, ".out.11111111.partial", 60)
    other = make_part(tmp_path, ".other.00000000.partial", 7200)
    export_model("tiny-chat", tmp_path / "out", progress=False)
    assert not old.exists()
    assert young.exists()
    assert other.exists()
