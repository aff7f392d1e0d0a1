"""`report`: builds the page, after making sure that only records as the program wrote them are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import typer

from prunebench.experiments.commands.options import Source
from prunebench.experiments.commands.request import output_folder
from prunebench.models.errors import BadInput

log = logging.getLogger(__name__)


def report(context: typer.Context, source: Source) -> int:
    """Builds the page from the records of an output folder."""
    from prunebench.experiments.load_config import load_config

    if source.out is None and source.config is None:
        raise BadInput("report needs --out DIR, the folder that a run wrote to, or --config FILE.")
    out = source.out if source.out is not None else output_folder(None, load_config(source.config, source.settings))
    if not out.is_dir():
        raise BadInput(f"output folder {out} does not exist; give the folder that a run wrote to.")
    print(f"page: {build_page(out, context.obj)}")
    return 0


def set_aside_changed_records(out: Path) -> list[str]:
    """Moves records that were changed after they were sealed out of the leaderboard's way.

    Returns:
        one sentence for each. A record without a seal (brought from elsewhere) is left alone.
    """
    from prunebench.experiments.cell_folder import CellFolder

    said = []
    for path in sorted(out.glob("cells/*/record.json")):
        folder = CellFolder(out, path.parent.name)
        if not folder.seal_file.exists() or folder.record_is_sealed():
            continue
        with folder.lock() as mine:
            if mine and folder.record_file.exists() and not folder.record_is_sealed():
                aside = folder.set_aside(folder.record_file)
                said.append(
                    f"cells/{path.parent.name}/record.json was changed or cut after it was written; kept as {aside.relative_to(out)}"
                )
    return said


def build_page(out: Path, build_report: Callable[[Path], Path]) -> Path:
    """The leaderboard's page for `out`; two runs that end at once build it one after the other.

    Args:
        build_report: `leaderboard.build_report`, handed over by run_all, since this room only writes records.
    Raises:
        LeaderboardError: no records, or the `report` extra isn't installed.
    """
    from filelock import FileLock

    with contextlib.suppress(OSError):
        for sentence in set_aside_changed_records(out):
            log.warning(sentence)
    with FileLock(out / ".report.lock"):
        return build_report(out)
