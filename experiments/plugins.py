"""Files that a command line brings along: Python files with pruners, recoveries and allocations, YAML files with protocols."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prunebench.evaluation.catalogue import load_protocols
from prunebench.methods.registry import load_plugin


def load_plugins(paths: Iterable[Path | str]) -> None:
    """Makes known what the files define.

    Raises:
        BadInput: a file that can't be read or defines nothing.
    """
    for path in map(Path, paths):
        if path.suffix in (".yaml", ".yml"):
            load_protocols(path)
        else:
            load_plugin(path)
