"""One process a cell: a crash, a hang or an out-of-memory kill is one failed row with its reason."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prunebench.experiments.artifacts import CellFolder
from prunebench.experiments.config import RunSettings
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.nursery import Nursery
from prunebench.experiments.progress import View
from prunebench.experiments.stopping import Stop

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0
LOG_TAIL_BYTES = 4000
WORKER_LOG = "worker.log"


@dataclass
class Running:
    """One worker process and what has come out of its pipe."""

    job: Job
    pid: int
    pipe: int
    started: float = field(default_factory=time.monotonic)
    last_word: float = field(default_factory=time.monotonic)
    buffer: bytes = b""
    outcome: Outcome | None = None
    stage: str = "start"
    killed_because: tuple[str, str] | None = None
    stop_sent: float | None = None


class ProcessExecutor:
    """Up to `workers` processes at a time."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.nursery = Nursery()

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]:
        waiting = list(jobs)
        running: list[Running] = []
        selector = selectors.DefaultSelector()
        try:
            while running or (waiting and not stop.is_asked):
                while waiting and len(running) < self.settings.workers and not stop.is_asked:
                    worker = self._start(waiting.pop(0))
                    selector.register(worker.pipe, selectors.EVENT_READ, worker)
                    running.append(worker)
                for key, _ in selector.select(POLL_SECONDS):
                    self._read(key.data, view)
                view.tick()
                for worker in list(running):
                    self._watch(worker, stop)
                    if self.nursery.poll(worker.pid) is not None:
                        while self._read(worker, view):
                            pass
                        selector.unregister(worker.pipe)
                        os.close(worker.pipe)
                        running.remove(worker)
                        yield worker.outcome or self._died(worker)
        finally:
            self.nursery.close()
            self.nursery = Nursery()
            for worker in running:
                os.close(worker.pipe)
            selector.close()

    def _start(self, job: Job) -> Running:
        folder = CellFolder(Path(job.out), job.cell.id)
        folder.path.mkdir(parents=True, exist_ok=True)
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        limit = self.settings.memory_gb_per_cell
        request = {"job": job.model_dump(mode="json"), "memory_bytes": None if limit is None else int(limit * 1e9)}
        with (folder.path / WORKER_LOG).open("wb") as log_file:
            pid = self.nursery.start(request, write_end, log_file.fileno())
        os.close(write_end)
        return Running(job, pid, read_end)

    def _read(self, worker: Running, view: View) -> bool:
        """Takes what the pipe holds; True if there was something."""
        try:
            data = os.read(worker.pipe, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            time.sleep(0.01)
            return False
        worker.last_word = time.monotonic()
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["kind"] == "outcome":
                worker.outcome = Outcome(**{key: value for key, value in message.items() if key != "kind"})
                continue
            if message["kind"] == "stage":
                worker.stage = message["stage"]
            view.event(message)
        return True

    def _watch(self, worker: Running, stop: Stop) -> None:
        """Ends a worker that hangs, takes too long or takes too much memory, and passes a stop on."""
        if worker.killed_because or self.nursery.poll(worker.pid) is not None:
            return
        now = time.monotonic()
        limits = self.settings
        if stop.is_asked and worker.stop_sent is None:
            worker.stop_sent = now
            self.nursery.signal(worker.pid, signal.SIGTERM)
        if worker.stop_sent is not None and now - worker.stop_sent > GRACE_SECONDS:
            worker.killed_because = ("interrupted", f"stopped by the user in stage {worker.stage}; the same command goes on from there")
        elif limits.cell_minutes is not None and now - worker.started > limits.cell_minutes * 60:
            worker.killed_because = (
                "failed",
                f"{worker.stage} was ended: the cell took more than run.cell_minutes = {limits.cell_minutes:g}",
            )
        elif limits.silent_minutes is not None and now - worker.last_word > limits.silent_minutes * 60:
            worker.killed_because = (
                "failed",
                f"{worker.stage} was ended: no progress for more than run.silent_minutes = {limits.silent_minutes:g}",
            )
        elif limits.memory_gb_per_cell is not None and resident_bytes(worker.pid) > limits.memory_gb_per_cell * 1e9:
            worker.killed_because = (
                "out_of_memory",
                f"{worker.stage} was ended: it took more than run.memory_gb_per_cell = {limits.memory_gb_per_cell:g}",
            )
        if worker.killed_because:
            self.nursery.signal(worker.pid, signal.SIGKILL)

    def _died(self, worker: Running) -> Outcome:
        """The row of a worker that ended without a word."""
        code = self.nursery.poll(worker.pid) or 0
        if worker.killed_because:
            status, reason = worker.killed_because
        elif code == -signal.SIGKILL:
            status, reason = "out_of_memory", f"the process was killed in stage {worker.stage}, most likely because memory ran out"
        elif code < 0:
            status, reason = "failed", f"the process crashed in stage {worker.stage} ({signal.Signals(-code).name})"
        else:
            last = self._last_line(worker.job)
            status = "out_of_memory" if last.startswith("MemoryError") else "failed"
            reason = f"the process ended with code {code} in stage {worker.stage}: {last}"
        return write_ending(worker.job, status, reason)

    @staticmethod
    def _last_line(job: Job) -> str:
        path = CellFolder(Path(job.out), job.cell.id).path / WORKER_LOG
        with contextlib.suppress(OSError):
            lines = path.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
            if lines:
                return lines[-1][:300]
        return "no message"


def resident_bytes(pid: int) -> int:
    """Memory of a process that lies in RAM; 0 if it is gone."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def write_ending(job: Job, status: str, reason: str) -> Outcome:
    """Writes the record of a cell whose worker can't do so any more."""
    from prunebench.experiments.recording import unfinished_record
    from prunebench.leaderboard.record import write_record

    folder = CellFolder(Path(job.out), job.cell.id)
    with folder.lock() as mine:
        if not mine:
            return Outcome(cell_id=job.cell.id, status="busy")
        stamps = {path.stem: stamp for path in sorted((folder.path / "stages").glob("*.json")) if (stamp := folder.read_stamp(path.stem))}
        write_record(Path(job.out), unfinished_record(job, status, reason, stamps, datetime.now(UTC)))
        folder.seal_record()
    return Outcome.model_validate({"cell_id": job.cell.id, "status": status, "reason": reason})
