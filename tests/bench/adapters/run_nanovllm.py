"""The same, in the place of our engine."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("run_fake.py")))
