"""One process a cell: a crash, a hang or an out-of-memory kill is one failed row with its reason.

The standard library's fork server holds everything imported (`server`) and forks a worker for each cell. The job, the
cell's events and, last, its outcome cross as JSON; what the cell prints goes to its worker.log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

from prunebench.experiments.cell_folder import CellFolder
from prunebench.experiments.config import RunSettings
from prunebench.experiments.executors.endings import STOPPED, last_line, write_ending
from prunebench.experiments.executors.environment import inherited_imports
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import View
from prunebench.experiments.stopping import Stop, stop_on_signals

PRELOADED = "prunebench.experiments.executors.server"
POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0
MESSAGES_AT_A_TIME = 256
PR_SET_PDEATHSIG = 1
SERVER_GONE = 255  # what multiprocessing says of a process whose fork server was killed


@dataclass
class Worker:
    """One worker process and what has come out of its pipe."""

    job: Job
    process: ForkServerProcess
    pipe: Connection
    started: float = field(default_factory=time.monotonic)
    last_word: float = field(default_factory=time.monotonic)
    outcome: Outcome | None = None
    stage: str = "start"
    killed_because: tuple[str, str] | None = None
    stop_sent: float | None = None

    def sources(self) -> list[Any]:
        """What becomes ready when the worker says something or ends."""
        return [self.process.sentinel] if self.pipe.closed else [self.pipe, self.process.sentinel]

    def hear(self, view: View, most: float) -> None:
        """Takes what the pipe holds, at most so many messages: one that talks without end must not hold up the rest."""
        while most > 0 and not self.pipe.closed:
            try:
                if not self.pipe.poll():
                    return
                message = json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                self.pipe.close()
                return
            self._take(message, view)
            most -= 1

    def _take(self, message: dict[str, Any], view: View) -> None:
        self.last_word = time.monotonic()
        if message["kind"] == "outcome":
            self.outcome = Outcome(**{key: value for key, value in message.items() if key != "kind"})
            return
        if message["kind"] == "stage":
            self.stage = message["stage"]
        view.event(message)


class ProcessExecutor:
    """Up to `workers` processes at a time."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]:
        waiting = list(jobs)
        running: list[Worker] = []
        try:
            while running or (waiting and not stop.is_asked):
                while waiting and len(running) < self.settings.workers and not stop.is_asked:
                    job = waiting.pop(0)
                    try:
                        running.append(self._start(job))
                    except (EOFError, ConnectionError) as error:
                        yield write_ending(job, "failed", f"no process could be forked for it ({type(error).__name__}); is memory short?")
                wait([source for worker in running for source in worker.sources()], POLL_SECONDS)
                view.tick()
                for worker in list(running):
                    has_ended = worker.process.exitcode is not None
                    worker.hear(view, math.inf if has_ended else MESSAGES_AT_A_TIME)
                    if has_ended:
                        running.remove(worker)
                        worker.pipe.close()
                        yield worker.outcome or self._died(worker)
                    else:
                        self._watch(worker, stop)
        finally:
            for worker in running:
                worker.process.kill()
            for worker in running:
                worker.process.join()
                worker.pipe.close()

    def _start(self, job: Job) -> Worker:
        log = log_of(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        limit = self.settings.memory_gb_per_cell
        request = {
            "job": job.model_dump(mode="json"),
            "log": str(log),
            "memory_bytes": None if limit is None else int(limit * 1e9),
            "environment": dict(os.environ),
        }
        receiver, sender = multiprocessing.Pipe(duplex=False)
        with sender:
            return Worker(job, forked(_work, json.dumps(request), sender), receiver)

    def _watch(self, worker: Worker, stop: Stop) -> None:
        """Ends a worker that hangs, takes too long or takes too much memory, and passes a stop on."""
        if stop.is_asked and worker.stop_sent is None:
            worker.stop_sent = time.monotonic()
            worker.process.terminate()
        if worker.killed_because is None and (reason := self._too_much(worker)) is not None:
            worker.killed_because = reason
            worker.process.kill()

    def _too_much(self, worker: Worker) -> tuple[str, str] | None:
        """Status and reason of a worker that must end now."""
        now, limits = time.monotonic(), self.settings
        if worker.stop_sent is not None and now - worker.stop_sent > GRACE_SECONDS:
            return "interrupted", STOPPED
        resident = resident_bytes(worker.process.pid) if limits.memory_gb_per_cell is not None else 0
        for name, status, amount, words in (
            ("cell_minutes", "failed", (now - worker.started) / 60, "the cell took more than"),
            ("silent_minutes", "failed", (now - worker.last_word) / 60, "no progress for more than"),
            ("memory_gb_per_cell", "out_of_memory", resident / 1e9, "it took more than"),
        ):
            limit = getattr(limits, name)
            if limit is not None and amount > limit:
                return status, f"{worker.stage} was ended: {words} run.{name} = {limit:g}"
        return None

    def _died(self, worker: Worker) -> Outcome:
        """The row of a worker that ended without an outcome, whatever its exit code."""
        code = worker.process.exitcode or 0
        if worker.killed_because:
            status, reason = worker.killed_because
        elif worker.stop_sent is not None:
            status, reason = "interrupted", STOPPED
        elif code == -signal.SIGKILL:
            status, reason = "out_of_memory", f"the process was killed in stage {worker.stage}, most likely because memory ran out"
        elif code < 0:
            status, reason = "failed", f"the process crashed in stage {worker.stage} ({signal.Signals(-code).name})"
        else:
            last = last_line(log_of(worker.job))
            status = "out_of_memory" if last.startswith("MemoryError") else "failed"
            whose = "the process, or the server that forks all processes," if code == SERVER_GONE else "the process"
            reason = f"{whose} ended with code {code} in stage {worker.stage}: {last}"
        return write_ending(worker.job, status, reason)


def log_of(job: Job) -> Path:
    """Where what a cell prints goes."""
    return CellFolder(Path(job.out), job.cell.id).path / "worker.log"


def resident_bytes(pid: int | None) -> int:
    """Memory of a process that lies in RAM; 0 if it is gone."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def forked(target: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Starts a process that has everything imported and runs `target`, a function of a module.

    The server is started if need be: with this process's sys.path and deaf to Ctrl-C, which is the run's to pass on.

    Raises:
        EOFError, ConnectionError: the server died before the process was there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    process = context.Process(target=target, args=arguments)
    with _no_main_module():
        resource_tracker.ensure_running()  # first, since its start unblocks the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with inherited_imports():
                forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        process.start()
    return process


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Keeps multiprocessing from running the user's script a second time, in the worker: nothing of it is needed there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(text: str, pipe: Connection) -> NoReturn:
    """The forked process: runs one job, sends its events and outcome, and ends without unwinding."""
    code = 1
    try:
        os.setsid()  # Ctrl-C reaches the run, which passes it on at its own pace
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        die_with_parent()
        run = multiprocessing.parent_process()
        if run is None or not run.is_alive():
            os._exit(code)
        _run_request(json.loads(text), pipe)
        code = 0
    except BaseException:  # nothing above but the server's loop, where this process must not go on
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_request(request: dict[str, Any], pipe: Connection) -> None:
    from prunebench.experiments.executors.worker import run_job

    log = os.open(request["log"], os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()  # of the server, which may have been started by an earlier run in the same process
    os.environ.update(request["environment"])
    limit = request["memory_bytes"]
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # what is written to, not mere address space

    def send(message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(json.dumps(message).encode())

    stop = Stop()
    with stop_on_signals(stop):
        outcome = run_job(Job.model_validate(request["job"]), send, stop)
    send({"kind": "outcome", **outcome.model_dump(mode="json")})


def die_with_parent() -> None:
    """On Linux the kernel ends this process when the one that started it dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
