"""`status`: what the cells of a grid are at: done, running, failed with reason, left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.experiments.commands.options import Cells
from prunebench.experiments.commands.request import understand

if TYPE_CHECKING:
    from prunebench.experiments.cell_folder import CellFolder
    from prunebench.experiments.plan import PlannedCell


def status(cells: Cells) -> int:
    """Says which cells are done, running, failed (with reason) or left."""
    request = understand(cells)
    print(status_table(request.cells, request.out))
    return 0


@dataclass(frozen=True)
class CellStatus:
    """One line of `status`."""

    cell_id: str
    title: str
    status: str
    note: str


def cell_status(cell: PlannedCell, out: Path) -> CellStatus:
    """Looks at one cell's folder; writes nothing."""
    from prunebench.experiments.cell_folder import CellFolder
    from prunebench.leaderboard.errors import LeaderboardError
    from prunebench.leaderboard.record import read_record

    folder = CellFolder(out, cell.id)

    def line(status: str, note: str = "") -> CellStatus:
        return CellStatus(cell.id, cell.title, status, note)

    if folder.path.is_dir() and folder.is_locked():
        return line("running", _progress_note(folder))
    stages = sorted(path.stem for path in folder.path.glob("stages/*.json"))
    if not folder.record_file.exists():
        return line("left", f"finished so far: {', '.join(stages)}" if stages else "")
    if not folder.record_is_sealed():
        return line("damaged", "record.json was changed or cut after it was written; run does the cell again")
    try:
        record = read_record(folder.record_file)
    except LeaderboardError as error:
        return line("damaged", str(error))
    return line(record.run.status, record.run.reason)


def _progress_note(folder: CellFolder) -> str:
    try:
        what = json.loads((folder.path / "progress.json").read_text(encoding="utf-8"))
        return f"{what['stage']}: {what['label']} {what['done']}/{what['total']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def status_table(cells: Sequence[PlannedCell], out: Path) -> str:
    """The table of `status` and a line that counts."""
    rows = [cell_status(cell, out) for cell in cells]
    width = max(len(row.title) for row in rows)
    lines = [f"{row.cell_id}  {row.title:<{width}}  {row.status:<13} {row.note}".rstrip() for row in rows]
    counts = Counter(row.status for row in rows)
    return "\n".join([*lines, "", ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))])
