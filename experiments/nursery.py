"""The run's side of the nursery: starts worker processes through it and hears when they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from prunebench.experiments.provenance import ROOT
from prunebench.experiments.worker import HEADER_BYTES


class Nursery:
    """One helper process that has everything imported and forks a worker for each job.

    If it dies, its workers die with it; `poll` then tells of each as killed, and the next `start` makes a new one.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._buffer = b""
        self._alive: set[int] = set()
        self._ended: dict[int, int] = {}

    def start(self, request: dict[str, Any], pipe: int, log: int) -> int:
        """Starts a worker with `request`; `pipe` and `log` are file descriptors for its events and its output. Returns its pid."""
        if self._process is None or self._process.poll() is not None:
            self._begin()
        assert self._line is not None
        body = json.dumps(request).encode()
        socket.send_fds(self._line, [str(len(body)).ljust(HEADER_BYTES).encode()], [pipe, log])
        self._line.sendall(body)
        while True:
            for message in self._messages(wait=True):
                if "code" not in message:
                    self._alive.add(message["pid"])
                    return int(message["pid"])

    def poll(self, pid: int) -> int | None:
        """The exit code of a worker (negative: the signal that ended it), or None while it runs."""
        if pid not in self._ended:
            self._messages(wait=False)
        return self._ended.get(pid)

    def signal(self, pid: int, number: int) -> None:
        if pid in self._alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """Ends the nursery and with it every worker."""
        for pid in self._alive:
            self.signal(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._line is not None:
            self._line.close()

    def _begin(self) -> None:
        here, there = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunebench.experiments.worker", str(there.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(there.fileno(),),
            env=environment,
            start_new_session=True,
        )
        there.close()
        self._line, self._buffer = here, b""

    def _messages(self, *, wait: bool) -> list[dict[str, Any]]:
        """Takes what the nursery said; ends of workers are noted here."""
        assert self._line is not None
        try:
            data = self._line.recv(1 << 16, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        if not data:
            self._ended |= dict.fromkeys(self._alive, -signal.SIGKILL)
            self._alive.clear()
            if wait:
                raise ChildProcessError("the helper that starts worker processes died; give the same command again.")
            return []
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if "code" in message:
                self._alive.discard(message["pid"])
                self._ended[message["pid"]] = message["code"]
        return messages
