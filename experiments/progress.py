"""What a run tells while it goes: events from the cells, shown as one live view or as plain lines.

An event is a plain dict, so that it can cross a pipe:
    {"kind": "stage", "cell": id, "stage": name}                              a stage starts
    {"kind": "progress", "cell": id, "label": text, "done": n, "total": n}
    {"kind": "line", "cell": id, "text": text}                                one summary line of a finished stage
    {"kind": "problem", "cell": id, "text": text}                             something was set aside
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from prunebench.experiments.stopping import Stop

Event = dict[str, Any]
Emit = Callable[[Event], None]
log = logging.getLogger("prunebench")

PLAIN_INTERVAL_SECONDS = 5.0


class View(Protocol):
    """Where events end up."""

    def start(self, titles: dict[str, str], done: int) -> None: ...
    def event(self, event: Event) -> None: ...
    def finished(self, cell: str, status: str, text: str) -> None: ...
    def tick(self) -> None: ...
    def close(self) -> None: ...


def duration(seconds: float) -> str:
    """`41 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gigabytes(count: float | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f} GB"


@dataclass
class Step:
    """One running step of a cell, with the rate measured by a clock that doesn't jump."""

    label: str = ""
    done: int = 0
    total: int = 0
    started: float = field(default_factory=time.monotonic)
    first_done: int = 0

    def update(self, label: str, done: int, total: int) -> None:
        if label != self.label or done < self.done:
            self.label, self.started, self.first_done = label, time.monotonic(), done
        self.done, self.total = done, total

    def seconds_left(self) -> float | None:
        gained, elapsed = self.done - self.first_done, time.monotonic() - self.started
        if gained <= 0 or self.total <= 0 or elapsed <= 0:
            return None
        return (self.total - self.done) * elapsed / gained

    def text(self) -> str:
        if not self.total:
            return self.label
        left = self.seconds_left()
        return f"{self.label} {self.done}/{self.total}" + (f", {duration(left)} left" if left is not None else "")


class Totals:
    """How far the whole run is, and when it will be through."""

    def __init__(self) -> None:
        self.titles: dict[str, str] = {}
        self.before = 0
        self.ended: dict[str, str] = {}
        self.started = time.monotonic()
        self.steps: dict[str, Step] = {}
        self.stages: dict[str, str] = {}

    def start(self, titles: dict[str, str], done: int) -> None:
        self.titles, self.before, self.started = titles, done, time.monotonic()

    def apply(self, event: Event) -> None:
        cell = event["cell"]
        if event["kind"] == "stage":
            self.stages[cell] = event["stage"]
            self.steps[cell] = Step()
        elif event["kind"] == "progress":
            self.steps.setdefault(cell, Step()).update(event["label"], event["done"], event["total"])

    def end(self, cell: str, status: str) -> None:
        self.ended[cell] = status
        self.steps.pop(cell, None)
        self.stages.pop(cell, None)

    def text(self) -> str:
        left = len(self.titles) - len(self.ended)
        parts = [f"{self.before + len(self.ended)} of {self.before + len(self.titles)} cells"]
        failed = sum(status in ("failed", "out_of_memory") for status in self.ended.values())
        if failed:
            parts.append(f"{failed} failed")
        if self.ended and left:
            each = (time.monotonic() - self.started) / len(self.ended)
            parts.append(f"about {duration(each * left)} left")
        return ", ".join(parts)

    def memory(self) -> str:
        import psutil

        process = psutil.Process()
        used = 0
        for one in (process, *process.children(recursive=True)):
            try:
                used += one.memory_info().rss
            except psutil.Error:
                continue
        return gigabytes(used)


class PlainView:
    """Lines for logs and pipes: one a stage, and one every few seconds while a step goes on."""

    def __init__(self, stream: TextIO | None = None, interval: float = PLAIN_INTERVAL_SECONDS) -> None:
        self.stream = stream or sys.stderr
        self.interval = interval
        self.totals = Totals()
        self.last = time.monotonic()

    def start(self, titles: dict[str, str], done: int) -> None:
        self.totals.start(titles, done)
        self._print(f"{len(titles)} cells to run, {done} already done")

    def event(self, event: Event) -> None:
        self.totals.apply(event)
        title = self.totals.titles.get(event["cell"], event["cell"])
        if event["kind"] in ("line", "problem"):
            self._print(f"[{title}] {event['text']}")
        elif event["kind"] == "progress":
            self.tick()

    def finished(self, cell: str, status: str, text: str) -> None:
        self.totals.end(cell, status)
        self._print(f"[{self.totals.titles.get(cell, cell)}] {status}{': ' + text if text else ''} ({self.totals.text()})")

    def tick(self) -> None:
        if time.monotonic() - self.last < self.interval:
            return
        for cell, stage in list(self.totals.stages.items()):
            step = self.totals.steps.get(cell, Step())
            self._print(f"[{self.totals.titles.get(cell, cell)}] {stage}: {step.text() or 'working'} ({self.totals.text()})")

    def close(self) -> None:
        self.stream.flush()

    def _print(self, text: str) -> None:
        self.last = time.monotonic()
        print(text, file=self.stream, flush=True)


class StoppingView:
    """Another view; asks the run to stop when what that one says can't be written any more, because its reader has left.

    Without this the cell at work would fail by no fault of its own.
    """

    def __init__(self, view: View, stop: Stop) -> None:
        self.view, self.stop = view, stop

    def start(self, titles: dict[str, str], done: int) -> None:
        with self._heard():
            self.view.start(titles, done)

    def event(self, event: Event) -> None:
        with self._heard():
            self.view.event(event)

    def finished(self, cell: str, status: str, text: str) -> None:
        with self._heard():
            self.view.finished(cell, status, text)

    def tick(self) -> None:
        with self._heard():
            self.view.tick()

    def close(self) -> None:
        with self._heard():
            self.view.close()

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.stop.ask()


class LiveView:
    """One view that is redrawn in place; summary lines scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(stderr=True)
        self.totals = Totals()
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._draw, transient=True)

    def start(self, titles: dict[str, str], done: int) -> None:
        self.totals.start(titles, done)
        self.live.start()

    def event(self, event: Event) -> None:
        self.totals.apply(event)
        if event["kind"] in ("line", "problem"):
            self._line(event["cell"], event["text"])

    def finished(self, cell: str, status: str, text: str) -> None:
        self.totals.end(cell, status)
        self._line(cell, f"{status}{': ' + text if text else ''}")

    def tick(self) -> None:
        pass

    def close(self) -> None:
        self.live.stop()

    def _line(self, cell: str, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(f"[{self.totals.titles.get(cell, cell)}] {text}"), soft_wrap=True)

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for cell, stage in list(self.totals.stages.items()):
            step = self.totals.steps.get(cell, Step())
            bar: Any = ProgressBar(total=step.total, completed=step.done, width=24) if step.total else Text("")
            table.add_row(Text(self.totals.titles.get(cell, cell), style="bold"), Text(stage), bar, Text(step.text()))
        return Group(table, Text(f"{self.totals.text()}, memory {self.totals.memory()}", style="dim"))


def make_view(plain: bool) -> View:
    """The live view in a terminal, plain lines otherwise."""
    return PlainView() if plain or not sys.stderr.isatty() else LiveView()


def quiet_libraries() -> None:
    """Keeps other libraries' progress bars from tearing the view apart."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    transformers.logging.disable_progress_bar()
