"""Finds pruning methods and recoveries by name: built-ins (imported when asked for), installed packages, single files."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Generic, TypeVar

from transformers import PreTrainedModel

from prunebench.methods.allocation import known_allocations
from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Pruner, PrunerConfig, Run, Support
from prunebench.methods.recovery.recovery import Recovery
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import BadInput, UnsupportedModel, deed
from prunebench.models.files import one_line
from prunebench.models.masks import Masks
from prunebench.models.suggest import unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Info:
    """Where something known by name comes from."""

    name: str
    origin: str


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: what one is called in sentences; base: what each must be a subclass of; task: its method to implement.
        group: entry points of installed packages.
        built_in: name -> "module:Class".
    """

    def __init__(self, kind: str, base: type[T], task: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind, self.base, self.task, self.group, self.built_in = kind, base, task, group, built_in
        self.registered: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that makes a class known as `name`.

        Raises:
            BadInput: not a subclass of the base, a malformed name, or a name that another class already has; both places are named.
        """

        def decorate(found: type[T]) -> type[T]:
            where = _location(found)
            base = f"{self.base.__module__.removeprefix('prunebench.')}.{self.base.__name__}"
            if not (inspect.isclass(found) and issubclass(found, self.base)):
                raise BadInput(f"{self.kind} {name!r} ({where}) is not a subclass of {base}.")
            if not (name.isidentifier() and name == name.lower()):
                raise BadInput(f"{self.kind} name {name!r} ({where}) is not lower_snake_case.")
            if inspect.isabstract(found):
                raise BadInput(f"{self.kind} {name!r} ({where}) does not implement {self.task}.")
            if name in self.built_in and self.built_in[name] != f"{found.__module__}:{found.__qualname__}":
                raise BadInput(f"{self.kind} {name!r} ({where}) has the name of a built-in one ({self.built_in[name]}).")
            other = self.registered.get(name)
            if other is not None and _location(other) != where:
                raise BadInput(f"{self.kind} {name!r} is defined twice: at {_location(other)} and at {where}.")
            found.name = name  # type: ignore[attr-defined]  # both bases have it
            self.registered[name] = found
            return found

        return decorate

    def known(self) -> dict[str, Info]:
        """Every name that `get` would find, without importing any class."""
        found = {name: Info(name, "built-in") for name in self.built_in}
        for entry in importlib.metadata.entry_points(group=self.group):
            found.setdefault(entry.name, Info(entry.name, f"package {entry.dist.name if entry.dist else '?'}"))
        for name, one in self.registered.items():
            found.setdefault(name, Info(name, _location(one)))
        return dict(sorted(found.items()))

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            BadInput: unknown name (with the nearest known one), or a package whose entry point fails.
        """
        if name in self.registered:
            return self.registered[name]
        if name in self.built_in:
            module, _, found = self.built_in[name].partition(":")
            return self.registered.setdefault(name, getattr(importlib.import_module(module), found))
        for entry in importlib.metadata.entry_points(group=self.group):
            if entry.name == name:
                return self._load(entry)
        raise unknown(self.kind, name, self.known())

    def _load(self, entry: importlib.metadata.EntryPoint) -> type[T]:
        try:
            loaded = entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a foreign package may fail in any way, also by sys.exit()
            what = f"{self.kind} {entry.name!r} (entry point {entry.value!r})"
            raise BadInput(f"{what} can't be imported: it {deed(error)} ({one_line(error)}).") from error
        if entry.name not in self.registered:
            self.register(entry.name)(loaded)
        return self.registered[entry.name]


def _location(found: object) -> str:
    try:
        file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]  # type: ignore[arg-type]
    except (TypeError, OSError):
        return f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', found)}"
    return f"{file}:{line}"


PRUNERS: Registry[Pruner] = Registry(
    "pruner",
    Pruner,  # type: ignore[type-abstract]
    "prune(self, model, budget, data, run)",
    "prunebench.pruners",
    {
        "block_influence": "prunebench.methods.block_influence:BlockInfluence",
        "compresso": "prunebench.methods.compresso.pruner:Compresso",
        "flap": "prunebench.methods.flap:Flap",
        "llm_pruner": "prunebench.methods.llm_pruner.pruner:LLMPruner",
        "magnitude": "prunebench.methods.magnitude:Magnitude",
        "nuteprune": "prunebench.methods.nuteprune.pruner:NutePrune",
        "random": "prunebench.methods.random:Random",
        "slicegpt": "prunebench.methods.registry:SliceGPT",
        "sparsegpt": "prunebench.methods.sparsegpt:SparseGPT",
        "wanda": "prunebench.methods.wanda:Wanda",
        "wanda_sp": "prunebench.methods.wanda_sp:WandaSp",
    },
)
RECOVERIES: Registry[Recovery] = Registry(
    "recovery",
    Recovery,  # type: ignore[type-abstract]
    "recover(self, model, settings, data, run)",
    "prunebench.recoveries",
    {"none": "prunebench.methods.recovery.none:NoRecovery", "lora": "prunebench.methods.recovery.lora:Lora"},
)

register = PRUNERS.register
get_pruner = PRUNERS.get
known_pruners = PRUNERS.known
register_recovery = RECOVERIES.register
get_recovery = RECOVERIES.get
known_recoveries = RECOVERIES.known


# --- methods that can't take part ------------------------------------------------------------------------------------


class Refused(Pruner[PrunerConfig]):
    """A method that is known by name, so that a grid that lists it gets a row with the reason."""

    reason: ClassVar[str]

    def supports(self, anatomy: Anatomy) -> Support:
        return Support.no(self.reason)

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        raise UnsupportedModel(self.reason)


@register("slicegpt")
class SliceGPT(Refused):
    """SliceGPT (arXiv 2401.15024); see docs/methods/slicegpt.md."""

    reason = (
        "SliceGPT rotates the residual stream anew in each layer and puts two shortcut matrices into every layer, which a plain "
        "transformers checkpoint can't hold and which take back much of what slicing saves; for residual width use "
        "llm_pruner with strategy 'channel'."
    )


# --- plugin files ----------------------------------------------------------------------------------------------------


def load_plugin(path: Path) -> list[str]:
    """Imports one Python file and returns the names of the pruners that it registers.

    Raises:
        BadInput: no such file, it fails on import, or it registers nothing.
    """
    path = path.expanduser().resolve()
    if not path.is_file() or path.suffix != ".py":
        accepted = "give the path of one .py file that registers a Pruner, or of a .yaml file with protocols"
        raise BadInput(f"plugin {str(path)!r} is not a Python file; {accepted}.")
    module_name = f"prunebench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name not in sys.modules:
        before = _all_registered()
        _import_file(path, module_name)
        _plugin_names[module_name] = _all_registered() - before
    names = _plugin_names[module_name]
    if not names:
        raise BadInput(f"plugin {path} registers no pruner, recovery or allocation; decorate its class with @register('name').")
    return sorted(name for kind, name in names if kind == "pruner")


def _all_registered() -> set[tuple[str, str]]:
    """(kind, name) of everything that is known by a decorator."""
    named = {registry.kind: registry.registered for registry in (PRUNERS, RECOVERIES)}
    return {(kind, name) for kind, found in (*named.items(), ("allocation", known_allocations())) for name in found}


_plugin_names: dict[str, set[tuple[str, str]]] = {}


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
        raise BadInput(f"plugin {path} can't be imported: it {deed(error)} ({one_line(error)}).") from error
    return module
