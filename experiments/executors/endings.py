"""Rows of cells whose worker can't write them any more, and what a cell's folder tells while it runs elsewhere."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prunebench.experiments.cell_folder import CellFolder
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import View

LET_GO_SECONDS = 10.0
LOG_TAIL_BYTES = 4000
STOPPED = "stopped by the user; the same command goes on from there"


def write_ending(job: Job, status: str, reason: str) -> Outcome:
    """Writes the record of a cell whose worker ended without a word.

    Returns:
        what the record says; `busy` where another run works on the cell. A cell that got through keeps its record.
    """
    from prunebench.experiments.recording import unfinished_record
    from prunebench.experiments.run_grid import settled
    from prunebench.leaderboard.record import write_record

    folder = CellFolder(Path(job.out), job.cell.id)
    with folder.lock() as mine:
        if not mine:
            return Outcome(cell_id=job.cell.id, status="busy")
        if (final := settled(job)) is not None:
            return Outcome.model_validate({"cell_id": job.cell.id, "status": final})
        stamps = {path.stem: stamp for path in sorted((folder.path / "stages").glob("*.json")) if (stamp := folder.read_stamp(path.stem))}
        write_record(Path(job.out), unfinished_record(job, status, reason, stamps, datetime.now(UTC)))
        folder.seal_record()
    return Outcome.model_validate({"cell_id": job.cell.id, "status": status, "reason": reason})


@dataclass
class Elsewhere:
    """A cell on a machine that this process only hears of through the output folder.

    Attributes:
        at_work_since: when its progress was first seen here, by this machine's steady clock; None while it waits its turn.
    """

    job: Job
    at_work_since: float | None = None

    def __post_init__(self) -> None:
        self._progress.unlink(missing_ok=True)  # what a killed run left there tells nothing of this one

    @property
    def _progress(self) -> Path:
        return CellFolder(Path(self.job.out), self.job.cell.id).path / "progress.json"

    def follow(self, view: View) -> None:
        """Shows what the cell's progress.json says."""
        try:
            what = json.loads(self._progress.read_text(encoding="utf-8"))
            view.event({"kind": "progress", "cell": self.job.cell.id, "label": what["label"], "done": what["done"], "total": what["total"]})
        except (OSError, ValueError, KeyError):
            return
        if self.at_work_since is None:
            self.at_work_since = time.monotonic()

    def took_longer_than(self, minutes: float | None) -> bool:
        return minutes is not None and self.at_work_since is not None and time.monotonic() - self.at_work_since > minutes * 60

    def end(self, status: str, reason: str) -> Outcome:
        """Writes the row once the killed worker has let go of the cell."""
        deadline = time.monotonic() + LET_GO_SECONDS
        while (outcome := write_ending(self.job, status, reason)).status == "busy" and time.monotonic() < deadline:
            time.sleep(0.2)
        return outcome


def last_line(log: Path) -> str:
    """The last line of a log, at most 300 characters: where an exception says its name."""
    try:
        lines = log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "no message"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
