"""What the fork server runs once, before it forks the first cell. Only for it: named in `processes`, imported by no one.

Nothing here starts a thread (pyarrow's allocator has one of its own, which survives a fork) or touches a GPU: a fork must
find neither.
"""

from __future__ import annotations

import contextlib

from prunebench.experiments.executors.processes import die_with_parent


def _import_what_cells_use() -> None:
    from prunebench.experiments import run_cell  # noqa: F401

    with contextlib.suppress(ImportError):
        import datasets  # noqa: F401
        import lm_eval.tasks  # noqa: F401
        import pyarrow.parquet  # noqa: F401


die_with_parent()  # the server ends with the run, and its workers with it
_import_what_cells_use()
