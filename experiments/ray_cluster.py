"""Cells as Ray tasks with declared CPUs, GPUs and memory. Ray schedules; the output folder must be one that all nodes see."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prunebench.experiments.artifacts import CellFolder
from prunebench.experiments.config import RunSettings
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.processes import write_ending
from prunebench.experiments.progress import View
from prunebench.experiments.provenance import ROOT
from prunebench.experiments.stopping import Stop
from prunebench.models.errors import BadInput

POLL_SECONDS = 1.0
RETRIES_AFTER_A_CRASH = 3
SUBMITTED_AHEAD = 64
KNOCK_SECONDS = 10.0


class RayExecutor:
    """Each cell one Ray task; a task whose worker or node dies is given to another one and goes on from its stages."""

    def __init__(self, settings: RunSettings) -> None:
        try:
            import ray
        except ImportError:
            raise BadInput("run.executor is ray, but ray is not installed; install prunebench[cluster].") from None
        self.ray: Any = ray
        self.settings = settings
        self.started_here = False
        self._connect()

    def _connect(self) -> None:
        ray = self.ray
        if ray.is_initialized():
            return
        address = self.settings.address
        _knock(address)
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address is None else None,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            message = str(error).strip().splitlines() or ["no reason given"]
            raise BadInput(
                f"no Ray cluster answers at run.address = {address!r} ({message[0]}); start one with 'ray start --head'."
            ) from None
        self.started_here = True

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]:
        ray, settings = self.ray, self.settings
        options: dict[str, Any] = {
            "num_cpus": settings.cpus_per_cell,
            "num_gpus": settings.gpus_per_cell,
            "max_retries": RETRIES_AFTER_A_CRASH,
            "retry_exceptions": False,
        }
        if settings.memory_gb_per_cell is not None:
            options["memory"] = int(settings.memory_gb_per_cell * 1e9)
        from prunebench.experiments.worker import run_job_text

        task = ray.remote(run_job_text).options(**options)
        waiting = list(jobs)
        running: dict[Any, tuple[Job, float | None]] = {}
        try:
            while running or (waiting and not stop.is_asked):
                while waiting and len(running) < SUBMITTED_AHEAD and not stop.is_asked:
                    job = waiting.pop(0)
                    running[task.remote(job.model_dump_json())] = (job, None)
                finished, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                for reference in finished:
                    job, _ = running.pop(reference)
                    yield self._outcome(reference, job)
                if stop.is_asked:
                    for reference, (job, _) in running.items():
                        ray.cancel(reference, force=True)
                        view.finished(job.cell.id, "interrupted", "stopped by the user; the same command goes on from there")
                    return
                for reference, (job, since) in list(running.items()):
                    running[reference] = (job, self._follow(job, since, view))
                    since = running[reference][1]
                    limit = settings.cell_minutes
                    if limit is not None and since is not None and time.monotonic() - since > limit * 60:
                        ray.cancel(reference, force=True)
                        del running[reference]
                        reason = f"ended: the cell took more than run.cell_minutes = {limit:g}"
                        yield self._end_when_free(job, "failed", reason)
                view.tick()
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if self.started_here:
                ray.shutdown()
                self.started_here = False

    def _follow(self, job: Job, since: float | None, view: View) -> float | None:
        """Shows what a cell's progress.json says; returns when the cell was first seen at work."""
        path = CellFolder(Path(job.out), job.cell.id).path / "progress.json"
        try:
            what = json.loads(path.read_text(encoding="utf-8"))
            view.event({"kind": "progress", "cell": job.cell.id, "label": what["label"], "done": what["done"], "total": what["total"]})
        except (OSError, ValueError, KeyError):
            return since
        return since if since is not None else time.monotonic()

    def _outcome(self, reference: Any, job: Job) -> Outcome:
        exceptions = self.ray.exceptions
        try:
            return Outcome.model_validate_json(self.ray.get(reference))
        except exceptions.OutOfMemoryError as error:
            return self._end_when_free(job, "out_of_memory", f"the Ray worker was ended for memory: {first_line(error)}")
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.ObjectLostError) as error:
            reason = f"the Ray worker died {RETRIES_AFTER_A_CRASH + 1} times: {first_line(error)}"
            return self._end_when_free(job, "failed", reason)
        except exceptions.RayTaskError as error:
            return self._end_when_free(job, "failed", f"the Ray task raised {first_line(error.cause or error)}")

    @staticmethod
    def _end_when_free(job: Job, status: str, reason: str) -> Outcome:
        """Writes the row once the killed worker has let go of the cell."""
        for _ in range(50):
            outcome = write_ending(job, status, reason)
            if outcome.status != "busy":
                return outcome
            time.sleep(0.2)
        return outcome


def _knock(address: str | None) -> None:
    """Sees in seconds whether anything listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"no Ray cluster answers at run.address = {address!r} ({reason}); start one with 'ray start --head'.") from None


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
