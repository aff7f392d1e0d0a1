"""One fair, reproducible race for methods that prune large language models: `from prunebench.methods import Pruner`."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

# Read once, when torch loads its OpenMP runtime: threads that wait for each other must not keep the core that the
# one they wait for needs (two threads beside one busy core: six times slower than one thread without this).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_HERE = Path(__file__).parent
_ROOMS = ("models", "methods", "evaluation", "experiments", "leaderboard")
if not all((_HERE / room).is_dir() for room in _ROOMS):  # links that a zip download or Windows lost
    __path__.append(str(_HERE.parent))

_PUBLIC = {
    "Anatomy": "models.anatomy",
    "Budget": "models.budget",
    "Masks": "models.masks",
    "Pruner": "methods.pruner",
    "PrunerConfig": "methods.pruner",
    "evaluate": "evaluation",
    "load_pruned": "models.checkpoint",
    "register": "methods.registry",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for, so that `import prunebench` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'prunebench' has no attribute {name!r}")
    return getattr(import_module(f"prunebench.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
