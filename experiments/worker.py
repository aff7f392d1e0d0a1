"""One cell in a process of its own: `python -m experiments.worker EVENT_FD` with the job as JSON on stdin.

Events and, last, the outcome go to the file descriptor as JSON lines; what the cell prints goes to its worker.log.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from experiments.job import Job, Outcome
from experiments.progress import Emit
from experiments.stopping import Stop, stop_on_signals

PR_SET_PDEATHSIG = 1


def run_job(job: Job, emit: Emit, stop: Stop) -> Outcome:
    """Prepares this process for one job (threads, plugins) and runs it."""
    import torch

    from experiments.cli import quiet_libraries

    quiet_libraries()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    load_plugins(job.plugins)
    from experiments.run_cell import run_cell

    return run_cell(job, emit, stop)


def load_plugins(paths: tuple[str, ...]) -> list[str]:
    """Imports plugin files; returns the names of the pruners that they register."""
    from methods.registry import load_plugin

    return [name for path in paths for name in load_plugin(Path(path))]


def run_job_text(text: str) -> str:
    """`run_job` for a Ray worker: JSON in, JSON out; progress goes to the cell's progress.json."""
    outcome = run_job(Job.model_validate_json(text), lambda event: None, Stop())
    return outcome.model_dump_json()


def main() -> None:
    _die_with_parent()
    request = json.loads(sys.stdin.read())
    if request["memory_bytes"] is not None:
        # Data memory beyond what the interpreter and torch have mapped already; address space alone costs nothing.
        resource.setrlimit(resource.RLIMIT_DATA, (request["memory_bytes"], request["memory_bytes"]))
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as pipe:

        def send(message: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(json.dumps(message) + "\n")
                pipe.flush()

        stop = Stop()
        with stop_on_signals(stop):
            outcome = run_job(Job.model_validate(request["job"]), send, stop)
        send({"kind": "outcome", **outcome.model_dump(mode="json")})


def _die_with_parent() -> None:
    """On Linux the kernel ends this process when the run that started it dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
