"""What a run tells: rate and time left by a steady clock, plain lines without a terminal, one live view with one."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunebench.experiments import progress
from prunebench.experiments.progress import PlainView, Step, Totals, duration
from tests.experiments.support import ROOT, Bench


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (41, "41 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (-3, "0 s")])
def test_durations_read_like_a_person_would_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_follows_the_rate_since_the_step_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    step = Step()
    step.update("training", 10, 100)
    now[0] += 5
    step.update("training", 20, 100)
    assert step.seconds_left() == pytest.approx(40)
    step.update("scoring", 0, 10)
    assert step.seconds_left() is None


def test_plain_lines_come_for_each_stage_and_every_few_seconds() -> None:
    stream = io.StringIO()
    view = PlainView(stream, interval=0.0)
    view.start({"a": "model magnitude 0.20"}, 3)
    view.event({"kind": "stage", "cell": "a", "stage": "prune"})
    view.event({"kind": "progress", "cell": "a", "label": "scoring", "done": 1, "total": 4})
    view.event({"kind": "line", "cell": "a", "text": "pruned"})
    view.finished("a", "failed", "no luck")
    view.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "1 cells to run, 3 already done"
    assert "prune: scoring 1/4" in lines[1]
    assert lines[2] == "[model magnitude 0.20] pruned"
    assert lines[3] == "[model magnitude 0.20] failed: no luck (4 of 4 cells, 1 failed)"


def test_nothing_is_silent_for_ten_seconds() -> None:
    assert progress.PLAIN_INTERVAL_SECONDS < 10


def test_totals_tell_memory_and_cells_left() -> None:
    totals = Totals()
    totals.start({"a": "A", "b": "B"}, 0)
    totals.end("a", "done")
    assert totals.text().startswith("1 of 2 cells, about")
    assert totals.memory().endswith("GB")


@pytest.mark.slow
def test_in_a_terminal_there_is_one_live_view(finished: Bench, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    other = object.__new__(Bench)
    other.__dict__.update(finished.__dict__)
    other.out = tmp_path / "terminal"
    arguments = [argument for argument in other.arguments("run") if argument != "--plain"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, ROOT / "run_all.py", *arguments], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        ready, _, _ = select.select([master], [], [], 1)
        if ready:
            try:
                shown += os.read(master, 65536)
            except OSError:
                break
        elif run.poll() is not None:
            break
    assert run.wait() == 0
    text = shown.decode("utf-8", "replace")
    assert "memory" in text
    assert "of 3 cells" in text
    assert "\x1b[" in text
    assert "magnitude 0.30] pruned magnitude" in text.replace("\r", "")
