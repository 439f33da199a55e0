"""Plugins as strangers ship them: found, named, selected; and when they are broken, reported and skipped."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import backends.mock.plugin
from backends.mock.runner import MockRunner
from backends.mock.simple_bpe import SimpleBPE
from nanovllm import LLM, PluginError, PluginNotFoundError, SamplingParams
from nanovllm.plugins import ModelRunnerPlugin, ModelSource, Tokenizer, TokenizerPlugin, Verdict, hookimpl
from nanovllm.plugins.manager import PluginManager

SOURCE = ModelSource("some-model", None)
Install = Callable[..., None]

GOOD = """
from nanovllm.plugins import ModelRunnerPlugin, Verdict, hookimpl

def make(source, config):
    from backends.mock.runner import MockRunner
    return MockRunner()

@hookimpl
def nanovllm_model_runners():
    return [ModelRunnerPlugin(name="{name}", factory=make, can_load=lambda source: Verdict(True, "anything"),
                              priority=1000, needs_folder=False, tokenizer="simple-bpe")]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package of one module as pip would: with a .dist-info and its entry points, on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = []

    def install_package(dist: str, source: str | None, *, entry_point: str | None = None) -> None:
        module = dist.replace("-", "_")
        modules.append(module)
        if source is not None:
            (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[nanovllm]\n{entry_point or dist} = {module}\n")

    yield install_package
    for module in modules:
        sys.modules.pop(module, None)


def test_an_installed_plugin_is_found_and_serves(install: Install) -> None:
    install("nanovllm-stranger", GOOD.format(name="stranger"))
    manager = PluginManager.discover()
    record = manager.model_runners()["stranger"]
    assert manager.origin(record) == "nanovllm-stranger of nanovllm-stranger 1.2"
    with LLM("anything", backend="stranger", plugins=manager) as llm:
        (output,) = llm.generate("x", SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(output.outputs[0].token_ids) == 3


def test_the_plugins_of_this_project_are_installed_as_a_stranger_s_are() -> None:
    manager = PluginManager.discover()
    assert {"mock"} <= manager.model_runners().keys()
    assert {"hf", "simple-bpe"} <= manager.tokenizers().keys()


HOOK = "from nanovllm.plugins import hookimpl\n@hookimpl\n"
BROKEN = {
    "no module": (None, "ModuleNotFoundError: No module named 'nanovllm_broken'"),
    "import error": (
        "import there_is_no_such_module",
        "ModuleNotFoundError: No module named 'there_is_no_such_module'",
    ),
    "syntax error": ("def (", "SyntaxError"),
    "raises": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "exits": ("import sys\nsys.exit('wrong machine')", "SystemExit: wrong machine"),
    "misspelt hook": (HOOK + "def nanovllm_model_runner():\n    return []", "nanovllm_model_runner"),
    "unknown argument": (HOOK + "def nanovllm_model_runners(device):\n    return []", "device"),
    "hook raises": (HOOK + "def nanovllm_model_runners():\n    raise KeyError('x')", "KeyError: 'x'"),
    "not a list": (HOOK + "def nanovllm_model_runners():\n    return 5", "TypeError: 'int' object is not iterable"),
    "nothing": (HOOK + "def nanovllm_model_runners():\n    pass", "TypeError: 'NoneType' object is not iterable"),
    "wrong type": (HOOK + "def nanovllm_model_runners():\n    return ['mock']", "a str, not a ModelRunnerPlugin"),
    "wrong tokenizer": (HOOK + "def nanovllm_tokenizers():\n    return [object()]", "a object, not a TokenizerPlugin"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_reported_by_name_and_skipped(source: str | None, reason: str, install: Install) -> None:
    install("nanovllm-broken", source)
    install("nanovllm-stranger", GOOD.format(name="stranger"))
    manager = PluginManager.discover()
    for _ in range(2):  # asking again reports nothing twice
        assert {"mock", "stranger"} <= manager.model_runners().keys()
        assert "simple-bpe" in manager.tokenizers()
    (problem,) = [broken for broken in manager.broken if broken.name.startswith("nanovllm-broken")]
    assert problem.name == "nanovllm-broken of nanovllm-broken 1.2"
    assert reason in problem.reason
    with pytest.raises(PluginNotFoundError) as caught:
        manager.select_model_runner(SOURCE, "missing")
    assert "broken plugin nanovllm-broken of nanovllm-broken 1.2" in str(caught.value)
    assert reason in str(caught.value)


def test_two_installed_plugins_of_one_name_are_an_error_that_names_both(install: Install) -> None:
    install("nanovllm-first", GOOD.format(name="twin"))
    install("nanovllm-second", GOOD.format(name="twin"))
    with pytest.raises(PluginError) as caught:
        PluginManager.discover().model_runners()
    for part in ("'twin'", "nanovllm-first 1.2", "nanovllm-second 1.2", "Uninstall one"):
        assert part in str(caught.value)


# -- selection --------------------------------------------------------------------------------------------------------


class Backends:
    """A plugin object with backends of given names, priorities and verdicts, which all make mocks."""

    def __init__(self, *records: ModelRunnerPlugin) -> None:
        self.records = records

    @hookimpl
    def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
        return list(self.records)


def backend(name: str, priority: int, verdict: Any) -> ModelRunnerPlugin:
    return ModelRunnerPlugin(
        name=name,
        factory=lambda source, config: MockRunner(),
        can_load=verdict if callable(verdict) else lambda source: verdict,
        priority=priority,
    )


def manager_of(*records: ModelRunnerPlugin) -> PluginManager:
    manager = PluginManager()
    for record in records:
        manager.register(Backends(record), f"package-{record.name}")
    return manager


YES, NO = Verdict(True, "it can"), Verdict(False, "it has no weights")


def test_without_a_name_the_highest_priority_that_can_load_is_chosen() -> None:
    low, mid, high = backend("low", 1, YES), backend("mid", 2, YES), backend("high", 3, NO)
    for order in ((low, mid, high), (high, mid, low)):
        assert manager_of(*order).select_model_runner(SOURCE, None) is mid
    assert list(manager_of(low, high, mid).model_runners()) == ["high", "mid", "low"]


def test_a_name_wins_over_the_environment_which_wins_over_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, best = backend("one", 1, NO), backend("two", 2, NO), backend("best", 3, YES)
    manager = manager_of(one, two, best)
    assert manager.select_model_runner(SOURCE, "one") is one
    assert manager.named_model_runner("one") is one
    assert manager.named_model_runner(None) is None
    monkeypatch.setenv("NANOVLLM_BACKEND", "two")
    assert manager.select_model_runner(SOURCE, None) is two
    assert manager.named_model_runner(None) is two
    assert manager.select_model_runner(SOURCE, "one") is one
    monkeypatch.setenv("NANOVLLM_BACKEND", "")
    assert manager.select_model_runner(SOURCE, None) is best


def test_the_environment_chooses_the_backend_of_an_llm(plugins: PluginManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLLM_BACKEND", "mock")
    assert LLM("any", plugins=plugins).model_info.model_name == "mock"


def test_an_unknown_name_is_an_error_that_lists_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = manager_of(backend("one", 1, YES), backend("two", 2, YES))
    for select in (lambda: manager.select_model_runner(SOURCE, "three"), lambda: manager.named_model_runner("three")):
        with pytest.raises(PluginNotFoundError, match=r"no backend named 'three'\. Installed: two, one\."):
            select()
    with pytest.raises(PluginNotFoundError, match=r"no tokenizer named 'three'\. Installed: none\."):
        manager.select_tokenizer(SOURCE, "three")


def test_where_none_can_load_the_error_says_what_was_tried_and_why_each_said_no() -> None:
    manager = manager_of(backend("one", 1, NO), backend("two", 2, Verdict(False, "it is for CUDA")))
    with pytest.raises(PluginNotFoundError) as caught:
        manager.select_model_runner(SOURCE, None)
    assert str(caught.value) == (
        "no backend can load 'some-model'. Tried:\n  two: it is for CUDA\n  one: it has no weights"
    )
    with pytest.raises(PluginNotFoundError, match="Tried: none is installed"):
        PluginManager().select_model_runner(SOURCE, None)


def raise_in_can_load(source: ModelSource) -> Verdict:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(raise_in_can_load, "OSError: the disk is gone"), (True, "a bool, not a Verdict"), (None, "a NoneType")],
)
def test_a_plugin_that_cannot_be_asked_counts_as_a_no_and_stops_no_other(verdict: Any, reason: str) -> None:
    sick, well = backend("sick", 9, verdict), backend("well", 1, YES)
    assert manager_of(sick, well).select_model_runner(SOURCE, None) is well
    with pytest.raises(PluginNotFoundError, match=f"sick: its can_load .*{reason}"):
        manager_of(sick).select_model_runner(SOURCE, None)


def test_a_tokenizer_is_selected_as_a_backend_is() -> None:
    def record(name: str, priority: int, verdict: Verdict) -> TokenizerPlugin:
        return TokenizerPlugin(name=name, factory=make, can_load=lambda source: verdict, priority=priority)

    def make(source: ModelSource) -> Tokenizer:
        return SimpleBPE()

    class Tokenizers:
        @hookimpl
        def nanovllm_tokenizers(self) -> list[TokenizerPlugin]:
            return [record("a", 1, YES), record("b", 2, YES), record("c", 3, NO)]

    manager = PluginManager()
    manager.register(Tokenizers(), "words")
    assert manager.select_tokenizer(SOURCE, None).name == "b"
    assert manager.select_tokenizer(SOURCE, "c").name == "c"
    assert manager.origin(manager.tokenizers()["a"]) == "words"


# -- registering by hand ----------------------------------------------------------------------------------------------


def test_a_plugin_object_with_a_misspelt_hook_is_refused_and_leaves_nothing_behind() -> None:
    class Misspelt:
        @hookimpl
        def nanovllm_modelrunners(self) -> list[ModelRunnerPlugin]:
            return []

    manager = manager_of(backend("one", 1, YES))
    with pytest.raises(PluginError, match=r"'typo' is not valid.*nanovllm_modelrunners"):
        manager.register(Misspelt(), "typo")
    manager.register(Backends(backend("two", 2, YES)), "typo")  # the name is free again
    assert list(manager.model_runners()) == ["two", "one"]


def test_registering_a_plugin_twice_is_an_error_and_keeps_the_first() -> None:
    manager = PluginManager()
    plugin = Backends(backend("one", 1, YES))
    manager.register(plugin, "package")
    for again, name in ((plugin, "package"), (plugin, "other"), (Backends(backend("two", 2, YES)), "package")):
        with pytest.raises(PluginError, match=name):
            manager.register(again, name)
        assert list(manager.model_runners()) == ["one"]


def test_a_factory_that_fails_is_an_error_that_names_the_backend() -> None:
    def fail(source: ModelSource, config: object) -> MockRunner:
        raise ZeroDivisionError("no such device")

    manager = PluginManager()
    record = ModelRunnerPlugin(
        name="sick", factory=fail, can_load=lambda source: YES, needs_folder=False, tokenizer="simple-bpe"
    )
    manager.register(backends.mock.plugin, "mock")
    manager.register(Backends(record), "sick-package")
    with pytest.raises(PluginError, match=r"'sick'.*'any'.*ZeroDivisionError: no such device"):
        LLM("any", backend="sick", plugins=manager)
