"""Cells in processes of their own: `python -m prunebench.experiments.worker SOCKET_FD` forks one for each request.

A cell's events and, last, its outcome go to a pipe as JSON lines; what the cell prints goes to its worker.log.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import Emit
from prunebench.experiments.stopping import Stop, stop_on_signals

PR_SET_PDEATHSIG = 1
REAP_SECONDS = 0.1
HEADER_BYTES = 16


def run_job(job: Job, emit: Emit, stop: Stop) -> Outcome:
    """Prepares this process for one job (threads, plugins) and runs it."""
    import torch

    from prunebench.experiments.progress import quiet_libraries
    from prunebench.methods.registry import load_plugins

    quiet_libraries()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    load_plugins(job.plugins)
    from prunebench.experiments.run_cell import run_cell

    return run_cell(job, emit, stop)


def run_job_text(text: str) -> str:
    """`run_job` for a Ray worker: JSON in, JSON out; progress goes to the cell's progress.json."""
    outcome = run_job(Job.model_validate_json(text), lambda event: None, Stop())
    return outcome.model_dump_json()


def main() -> None:
    """The nursery: imports once, then forks one process a job, so that a cell starts in a moment.

    Each request is a JSON line on the socket, with two file descriptors: the pipe for events and the log. Answers are JSON
    lines: {"pid": n} for a start, {"pid": n, "code": n} for an end (the code as `subprocess` gives it).
    """
    die_with_parent()
    line = socket.socket(fileno=int(sys.argv[1]))
    _preload()
    while True:
        for pid, code in _ended():
            line.sendall(json.dumps({"pid": pid, "code": code}).encode() + b"\n")
        if not select.select([line], [], [], REAP_SECONDS)[0]:
            continue
        header, descriptors, _, _ = socket.recv_fds(line, HEADER_BYTES, 2)
        if not header:
            return
        text = _receive(line, int(header))
        pid = os.fork()
        if pid == 0:
            line.close()
            _work(json.loads(text), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        line.sendall(json.dumps({"pid": pid}).encode() + b"\n")


def _preload() -> None:
    """What every cell imports sooner or later. Starts no threads, touches no GPU: a fork must find neither."""
    from prunebench import evaluation  # noqa: F401
    from prunebench.experiments import run_cell  # noqa: F401
    from prunebench.experiments.progress import quiet_libraries

    quiet_libraries()
    with contextlib.suppress(ImportError):
        import datasets  # noqa: F401
        import pyarrow.parquet  # noqa: F401


def _receive(line: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += line.recv(count - len(data))
    return data


def _ended() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _work(request: dict[str, Any], pipe_descriptor: int, log_descriptor: int) -> NoReturn:
    """The forked process: runs one job, sends its events and outcome, and ends without unwinding."""
    code = 1
    try:
        os.setsid()  # Ctrl-C reaches the run, which passes it on at its own pace
        die_with_parent()
        os.dup2(log_descriptor, 1)
        os.dup2(log_descriptor, 2)
        _run_request(request, pipe_descriptor)
        code = 0
    except BaseException:  # the only place above is the nursery's loop, where this process must not go on
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_request(request: dict[str, Any], pipe_descriptor: int) -> None:
    limit = request["memory_bytes"]
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # what is written to, not mere address space
    with os.fdopen(pipe_descriptor, "w", encoding="utf-8") as pipe:

        def send(message: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(json.dumps(message) + "\n")
                pipe.flush()

        stop = Stop()
        with stop_on_signals(stop):
            outcome = run_job(Job.model_validate(request["job"]), send, stop)
        send({"kind": "outcome", **outcome.model_dump(mode="json")})


def die_with_parent() -> None:
    """On Linux the kernel ends this process when the one that started it dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
