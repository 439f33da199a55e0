"""For every test: no network, no deadlines of Hypothesis, since the machine is shared, and Ctrl-C as in a terminal."""

import os
import signal

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("nanovllm", deadline=None, print_blob=True)
settings.load_profile("nanovllm")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and a program under test would inherit it and never see Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
