"""Finds pruning methods by name: built-ins (imported when asked for), installed packages, single files."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from prunebench.methods.pruner import Pruner
from prunebench.models.errors import BadInput

ENTRY_POINT_GROUP = "prunebench.pruners"

BUILT_IN = {
    "block_influence": "prunebench.methods.block_influence:BlockInfluence",
    "compresso": "prunebench.methods.compresso.pruner:Compresso",
    "flap": "prunebench.methods.flap:Flap",
    "llm_pruner": "prunebench.methods.llm_pruner.pruner:LLMPruner",
    "magnitude": "prunebench.methods.magnitude:Magnitude",
    "nuteprune": "prunebench.methods.nuteprune.pruner:NutePrune",
    "random": "prunebench.methods.random:Random",
    "slicegpt": "prunebench.methods.slicegpt:SliceGPT",
    "sparsegpt": "prunebench.methods.sparsegpt:SparseGPT",
    "wanda": "prunebench.methods.wanda:Wanda",
    "wanda_sp": "prunebench.methods.wanda_sp:WandaSp",
}

_registered: dict[str, type[Pruner]] = {}


@dataclass(frozen=True)
class PrunerInfo:
    """Where a known method comes from."""

    name: str
    origin: str


def register(name: str) -> Callable[[type[Pruner]], type[Pruner]]:
    """Class decorator that makes a pruner known as `name`.

    Raises:
        BadInput: not a Pruner class, a malformed name, or a name that another class already has; both places are named.
    """

    def decorate(pruner: type[Pruner]) -> type[Pruner]:
        where = _location(pruner)
        if not (inspect.isclass(pruner) and issubclass(pruner, Pruner)):
            raise BadInput(f"@register({name!r}) is on {where}, which is not a subclass of methods.pruner.Pruner.")
        if not (name.isidentifier() and name == name.lower()):
            raise BadInput(f"pruner name {name!r} ({where}) is not lower_snake_case.")
        if inspect.isabstract(pruner):
            raise BadInput(f"pruner {name!r} ({where}) does not implement prune(self, model, budget, data, run).")
        if name in BUILT_IN and BUILT_IN[name] != f"{pruner.__module__}:{pruner.__qualname__}":
            raise BadInput(f"pruner {name!r} ({where}) has the name of a built-in method ({BUILT_IN[name]}).")
        other = _registered.get(name)
        if other is not None and _location(other) != where:
            raise BadInput(f"pruner {name!r} is defined twice: at {_location(other)} and at {where}.")
        pruner.name = name
        _registered[name] = pruner
        return pruner

    return decorate


def _location(pruner: object) -> str:
    try:
        file, line = inspect.getsourcefile(pruner), inspect.getsourcelines(pruner)[1]  # type: ignore[arg-type]
    except (TypeError, OSError):
        return f"{getattr(pruner, '__module__', '?')}.{getattr(pruner, '__qualname__', pruner)}"
    return f"{file}:{line}"


def known_pruners() -> dict[str, PrunerInfo]:
    """Every method that `get_pruner` would find, by name, without importing any."""
    known = {name: PrunerInfo(name, "built-in") for name in BUILT_IN}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        package = entry.dist.name if entry.dist else "?"
        known.setdefault(entry.name, PrunerInfo(entry.name, f"package {package}"))
    for name, pruner in _registered.items():
        known.setdefault(name, PrunerInfo(name, _location(pruner)))
    return dict(sorted(known.items()))


def get_pruner(name: str) -> type[Pruner]:
    """The class of a method.

    Raises:
        BadInput: unknown name (with the nearest known one), or a package whose entry point fails.
    """
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        importlib.import_module(BUILT_IN[name].partition(":")[0])
        return _registered[name]
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return _load_entry_point(entry)
    known = list(known_pruners())
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInput(f"Unknown pruner {name!r}.{hint} Known: {', '.join(known)}.")


def _load_entry_point(entry: importlib.metadata.EntryPoint) -> type[Pruner]:
    try:
        loaded = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a foreign package may fail in any way, also by sys.exit()
        raise BadInput(f"pruner {entry.name!r} (entry point {entry.value!r}) can't be imported: {error!r}.") from error
    if entry.name not in _registered:
        register(entry.name)(loaded)
    return _registered[entry.name]


def load_plugin(path: Path) -> list[str]:
    """Imports one Python file and returns the names of the pruners that it registers.

    Raises:
        BadInput: no such file, it fails on import, or it registers nothing.
    """
    path = path.expanduser().resolve()
    if not path.is_file() or path.suffix != ".py":
        raise BadInput(f"plugin {str(path)!r} is not a Python file; give the path of one .py file that registers a Pruner.")
    module_name = f"prunebench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name not in sys.modules:
        before = set(_registered)
        _import_file(path, module_name)
        _plugin_names[module_name] = sorted(set(_registered) - before)
    if not _plugin_names[module_name]:
        raise BadInput(f"plugin {path} registers no pruner; decorate its class with @register('name').")
    return _plugin_names[module_name]


def load_plugins(paths: Iterable[Path | str]) -> list[str]:
    """Imports plugin files; returns the names of the pruners that they register."""
    return [name for path in paths for name in load_plugin(Path(path))]


_plugin_names: dict[str, list[str]] = {}


def _import_file(path: Path, module_name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(module_name, str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(module_name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        loader.exec_module(module)
    except BadInput:
        del sys.modules[module_name]
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail in any way, also by sys.exit()
        del sys.modules[module_name]
        raise BadInput(f"plugin {path} can't be imported: {error!r}.") from error
    return module
