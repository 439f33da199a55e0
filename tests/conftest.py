"""For every test: no network, and Hypothesis without deadlines, since the machine is shared."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("nanovllm", deadline=None, print_blob=True)
settings.load_profile("nanovllm")
