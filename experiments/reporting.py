"""Builds the page, after making sure that only records as the program wrote them are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from prunebench.experiments.artifacts import CellFolder

log = logging.getLogger(__name__)


def set_aside_changed_records(out: Path) -> list[str]:
    """Moves records that were changed after they were sealed out of the leaderboard's way.

    Returns:
        one sentence for each. A record without a seal (brought from elsewhere) is left alone.
    """
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
    with contextlib.suppress(OSError):
        for sentence in set_aside_changed_records(out):
            log.warning(sentence)
    with FileLock(out / ".report.lock"):
        return build_report(out)
