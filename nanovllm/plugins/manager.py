"""Finds plugins, keeps the broken ones from doing harm, and picks the one to use.

In: the entry points of the group "nanovllm". Out: records by name, and a list of what went wrong. Acts at start-up
only; the engine's steps never pass through here.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypeVar

import pluggy

from nanovllm.errors import ConfigError, PluginError, PluginNotFoundError
from nanovllm.plugins import hookspecs
from nanovllm.plugins.records import ModelRunnerPlugin, ModelSource, TokenizerPlugin, Verdict

__all__ = ["BACKEND_VARIABLE", "BrokenPlugin", "PluginManager"]

BACKEND_VARIABLE = "NANOVLLM_BACKEND"


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that was skipped, and why. `name` is its entry point's, with the package that brings it."""

    name: str
    reason: str


class _Record(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def can_load(self) -> Callable[[ModelSource], Verdict]: ...


RecordT = TypeVar("RecordT", bound=_Record)


class PluginManager:
    """The plugins of this process. `PluginManager.discover()` is the usual way to make one."""

    def __init__(self) -> None:
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self.broken: list[BrokenPlugin] = []
        self._origin: dict[tuple[str, str], str] = {}  # (hook, record's name) -> plugin

    @classmethod
    def discover(cls) -> "PluginManager":
        """Loads every entry point of the group, one by one; what fails is listed in `broken` and skipped."""
        manager = cls()
        for entry_point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda e: e.name):
            manager._load(entry_point)
        return manager

    def register(self, plugin: object, name: str) -> None:
        """Adds a plugin object (a module, usually).

        Raises `PluginError` for a hook that does not exist, and for a plugin or a name that is registered already.
        """
        if self._pluggy.has_plugin(name) or self._pluggy.is_registered(plugin):
            raise PluginError(f"plugin {name!r} is registered already. Register it once.")
        try:
            self._pluggy.register(plugin, name=name)
            self._pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            if self._pluggy.is_registered(plugin):
                self._pluggy.unregister(plugin)
            raise PluginError(f"plugin {name!r} is not valid: {error}") from error

    def _load(self, entry_point: EntryPoint) -> None:
        package = f" of {entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else ""
        name = f"{entry_point.name}{package}"
        try:
            self.register(entry_point.load(), name)
        except (Exception, SystemExit) as error:  # a stranger's module may do anything; it must not end us
            self.broken.append(BrokenPlugin(name, f"{type(error).__name__}: {error}"))

    def model_runners(self) -> dict[str, ModelRunnerPlugin]:
        """Backends by name, highest priority first. Raises `PluginError` where two plugins claim one name."""
        return self._collect("nanovllm_model_runners", ModelRunnerPlugin)

    def tokenizers(self) -> dict[str, TokenizerPlugin]:
        """Tokenizers, as `model_runners`."""
        return self._collect("nanovllm_tokenizers", TokenizerPlugin)

    def origin(self, record: ModelRunnerPlugin | TokenizerPlugin) -> str:
        """Name of the plugin that brought a record."""
        hook = "nanovllm_model_runners" if isinstance(record, ModelRunnerPlugin) else "nanovllm_tokenizers"
        return self._origin[hook, record.name]

    def named_model_runner(self, name: str | None) -> ModelRunnerPlugin | None:
        """The backend of that name (or of NANOVLLM_BACKEND); None where none was named. As `select_model_runner`."""
        name = name or os.environ.get(BACKEND_VARIABLE) or None
        return None if name is None else _named("backend", self.model_runners(), name, self.broken)

    def select_model_runner(
        self, source: ModelSource, name: str | None, *, tensor_parallel_size: int = 1
    ) -> ModelRunnerPlugin:
        """The backend of that name (or of NANOVLLM_BACKEND); else the best one that can load `source`.

        tensor_parallel_size: where above 1, only backends that divide a model count. Raises `ConfigError` for another
        one that is named, and where there is none.
        """
        name = name or os.environ.get(BACKEND_VARIABLE) or None
        records = self.model_runners()
        if tensor_parallel_size > 1:
            able = {record.name: record for record in records.values() if record.tensor_parallel}
            if not able or (name in records and name not in able):
                raise ConfigError(_not_parallel(tensor_parallel_size, name, able))
            records = able if name is None else records
        return _select("backend", records, source, name, self.broken)

    def select_tokenizer(self, source: ModelSource, name: str | None) -> TokenizerPlugin:
        """The tokenizer of that name; else the best one that can load `source`."""
        return _select("tokenizer", self.tokenizers(), source, name, self.broken)

    def _collect(self, hook: str, kind: type[RecordT]) -> dict[str, RecordT]:
        records: dict[str, RecordT] = {}
        for implementation in getattr(self._pluggy.hook, hook).get_hookimpls():
            for record in self._call(implementation, kind):
                if record.name in records:
                    raise PluginError(
                        f"two plugins register the name {record.name!r}: {self._origin[hook, record.name]!r} and "
                        f"{implementation.plugin_name!r}. Uninstall one of them."
                    )
                records[record.name] = record
                self._origin[hook, record.name] = implementation.plugin_name
        return dict(sorted(records.items(), key=lambda item: -item[1].priority))

    def _call(self, implementation: Any, kind: type[RecordT]) -> list[RecordT]:
        try:
            records = list(implementation.function())
            wrong = next((record for record in records if not isinstance(record, kind)), None)
            if wrong is not None:
                raise TypeError(f"it returned a {type(wrong).__name__}, not a {kind.__name__}")
        except Exception as error:  # as in _load
            problem = BrokenPlugin(implementation.plugin_name, f"{type(error).__name__}: {error}")
            if problem not in self.broken:
                self.broken.append(problem)
            return []
        return records


def _select(
    what: str, records: dict[str, RecordT], source: ModelSource, name: str | None, broken: Iterable[BrokenPlugin]
) -> RecordT:
    if name is not None:
        return _named(what, records, name, broken)
    refusals = []
    for record in records.values():
        verdict = _ask(record, source)
        if verdict.loadable:
            return record
        refusals.append(f"\n  {record.name}: {verdict.reason}")
    tried = "".join(refusals) or " none is installed"
    raise PluginNotFoundError(f"no {what} can load {source.name!r}. Tried:{tried}{_describe(broken)}")


def _named(what: str, records: dict[str, RecordT], name: str, broken: Iterable[BrokenPlugin]) -> RecordT:
    if name in records:
        return records[name]
    by = f" ({BACKEND_VARIABLE})" if what == "backend" and os.environ.get(BACKEND_VARIABLE) == name else ""
    raise PluginNotFoundError(
        f"there is no {what} named {name!r}{by}. Installed: {', '.join(records) or 'none'}.{_describe(broken)}"
    )


def _not_parallel(tensor_parallel_size: int, name: str | None, able: Iterable[str]) -> str:
    who = "no installed backend divides" if name is None else f"backend {name!r} does not divide"
    return (
        f"tensor_parallel_size is {tensor_parallel_size}, but {who} a model among processes; those that do: "
        f"{', '.join(able) or 'none'}. Name one of them, or leave tensor_parallel_size out."
    )


def _ask(record: _Record, source: ModelSource) -> Verdict:
    """What the plugin says about `source`; one that cannot even be asked says no."""
    try:
        verdict = record.can_load(source)
    except Exception as error:  # as in PluginManager._load
        return Verdict(False, f"its can_load failed: {type(error).__name__}: {error}")
    if not isinstance(verdict, Verdict):
        return Verdict(False, f"its can_load returned a {type(verdict).__name__}, not a Verdict")
    return verdict


def _describe(broken: Iterable[BrokenPlugin]) -> str:
    return "".join(f"\n  broken plugin {problem.name}: {problem.reason}" for problem in broken)
