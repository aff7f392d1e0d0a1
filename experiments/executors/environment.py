"""What a new Python process needs in its environment to import what this one does."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import prunebench


@contextlib.contextmanager
def inherited_imports() -> Iterator[None]:
    """Python processes that start meanwhile on this machine or one like it import from where this one does.

    PYTHONPATH is the whole of sys.path, so that a checkout, an installed wheel and the user's own entries keep their order;
    PYTHONSAFEPATH keeps the folder that the run was started in from coming first.
    """
    variables = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def python_path() -> str:
    """The user's PYTHONPATH and the folder that holds prunebench, in the order of sys.path: enough for another machine.

    The rest of sys.path is the interpreter's own, and that of another machine may lie elsewhere.
    """
    user = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    wanted = {os.path.abspath(entry) for entry in (*user, str(Path(prunebench.__path__[0]).parent))}
    return os.pathsep.join(entry for entry in dict.fromkeys(map(os.path.abspath, sys.path)) if entry in wanted)
