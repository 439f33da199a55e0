"""What may be imported, what importing costs, and on which systems it works."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nanovllm
import nanovllm.plugins
from backends.mock.simple_bpe import SimpleBPE
from nanovllm.resources import num_physical_cores

HEAVY = (
    "torch", "onnxruntime", "onnx", "onnx_ir", "transformers", "tokenizers", "jinja2", "tqdm", "huggingface_hub",
    "safetensors", "ml_dtypes", "backends", "export",
)  # fmt: skip
POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix_ipc", "syslog", "crypt", "readline")


@pytest.mark.parametrize("module", [nanovllm, nanovllm.plugins], ids=lambda module: module.__name__)
def test_every_public_name_can_be_imported(module: object) -> None:
    names = module.__all__
    assert all(hasattr(module, name) for name in names)
    assert len(set(names)) == len(names)


MODULES = sorted(found.name for found in pkgutil.walk_packages(nanovllm.__path__, "nanovllm.") if not found.ispkg)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "nanovllm.__main__"])
def test_every_module_lists_what_is_public_and_has_it(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__
    assert all(hasattr(module, public) for public in module.__all__)


def test_every_error_of_the_tree_is_public_and_has_one_root() -> None:
    from nanovllm import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.NanoVLLMError)
        assert getattr(nanovllm, name) is getattr(errors, name)
        assert name in nanovllm.__all__
        assert name in (errors.__doc__ or ""), f"{name} is not drawn in the tree"


def run(program: str) -> str:
    """What a fresh interpreter, in which warnings are errors, prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(nanovllm.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_nanovllm_loads_nothing_heavy() -> None:
    assert run(f"import sys, nanovllm; print([m for m in {HEAVY!r} if m in sys.modules])") == "[]"


def test_finding_the_plugins_loads_nothing_heavy() -> None:
    heavy = tuple(name for name in HEAVY if name not in ("backends", "export"))
    program = f"""
import sys
from nanovllm.plugins.manager import PluginManager
manager = PluginManager.discover()
assert manager.model_runners() and manager.tokenizers()
print([m for m in {heavy!r} if m in sys.modules])
"""
    assert run(program) == "[]"


BLOCK = f"""
import os, sys

class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {POSIX_ONLY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} on this system", name=name)

for name in {POSIX_ONLY!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, NotHere())
for name in ("sched_getaffinity", "getuid", "geteuid", "fork", "getloadavg", "mkfifo", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
"""


def test_without_the_modules_of_posix_it_imports_counts_cores_and_serves() -> None:
    program = f"""{BLOCK}
import nanovllm
from nanovllm.resources import available_memory_bytes, num_physical_cores
assert num_physical_cores() >= 1
assert available_memory_bytes() > 0
llm = nanovllm.LLM("any", backend="mock")
print(len(llm.generate("Hello", nanovllm.SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids))
"""
    assert run(program) == "5"


def test_the_simulation_of_another_system_does_hide_what_it_says() -> None:
    program = f"""{BLOCK}
try:
    import fcntl
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(program) == "No module named 'fcntl' on this system"


SIMPLE = SimpleBPE()


@given(st.text())
@example("The cache of keys and values, cut into blocks.\n\n\t  é🙂\x00")
@example(" ")
def test_every_text_survives_the_simple_tokenizer(text: str) -> None:
    token_ids = SIMPLE.encode(text)
    assert SIMPLE.decode(token_ids) == text
    assert all(0 < token_id < SIMPLE.vocab_size for token_id in token_ids)
    pieces = SIMPLE.token_bytes()
    assert b"".join(pieces[token_id] for token_id in token_ids) == text.encode()


def test_the_simple_tokenizer_joins_what_it_has_learned() -> None:
    text = "When the blocks run out, the youngest text waits its turn."
    assert len(SIMPLE.encode(text)) < len(text) / 2
    assert SIMPLE.encode(text) == SimpleBPE().encode(text)


def test_a_process_may_use_no_more_cores_than_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert num_physical_cores() == 1
