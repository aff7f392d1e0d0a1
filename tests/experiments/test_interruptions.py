"""Ctrl-C, two runs at once, a full disk, a vanished folder, a clock that jumps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiments.support import Bench, differences

PLUGIN = Path(__file__).parents[1] / "chaos" / "learned.py"
SLOW_GRID = {
    "grid": {"method": [{"name": "learned", "config": {"steps": 25, "pause": 0.1}}]},
    "calibration": {"source": "c4", "num_samples": 4, "seq_len": 16},
}


def wait_for(path: Path, pattern: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "processes"])
def test_ctrl_c_ends_at_a_safe_point_and_the_same_command_goes_on(bench: Bench, executor: str) -> None:
    bench.configure(**SLOW_GRID, run={"executor": executor})
    run = bench.start("run", "--plugin", str(PLUGIN))
    wait_for(bench.out, "cells/*/unfinished/prune/method/state.safetensors")
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "The same command goes on from there" in said
    assert "Traceback" not in said
    record = bench.record("learned")
    assert record["run"]["status"] == "interrupted"
    assert not record["metrics"]["scores"]
    assert bench("run", "--plugin", str(PLUGIN)) == 0
    assert len(bench.record("learned")["metrics"]["curves"]["prune: loss"]) == 25


@pytest.mark.slow
def test_two_runs_on_one_folder_share_the_cells_and_spoil_nothing(bench: Bench) -> None:
    bench.configure(grid={"method": ["magnitude", "random"], "sparsity": [0.2, 0.4]})
    runs = [bench.start("run") for _ in range(2)]
    for run in runs:
        said = run.communicate(timeout=200)
        assert run.returncode == 0, said
        assert "5 done" in said
    together = bench.records()
    bench.out = bench.folder / "alone"
    assert bench("run") == 0
    assert not differences(together, bench.records())


def test_a_cell_that_another_run_holds_is_waited_for(bench: Bench) -> None:
    import threading

    from prunebench.experiments.cell_folder import CellFolder
    from prunebench.experiments.load_config import load_config
    from prunebench.experiments.plan import plan_grid

    cell = plan_grid(load_config(bench.config), bench.data)[0]
    folder = CellFolder(bench.out, cell.id)
    held = folder.lock()
    assert held.__enter__()
    release = threading.Timer(2.5, lambda: held.__exit__(None, None, None))
    release.start()
    assert bench("run") == 0
    release.join()
    assert len(bench.record_paths()) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB, or a folder under a file size limit where mounting isn't allowed."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.fail(f"this test needs to mount a tmpfs: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_in_one_sentence_and_loses_nothing(
    bench: Bench, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.configure(grid={"method": ["magnitude", "random"], "sparsity": [0.2, 0.3, 0.4, 0.5]})
    bench.out = small_disk / "out"
    assert bench("run") == 1
    said = capsys.readouterr().err
    assert "is full; free some space and give the same command again" in said
    assert "Traceback" not in said
    done = bench.records()
    assert 0 < len(done) < 9
    assert not list(bench.out.glob("cells/*/.tmp-*"))
    larger = bench.folder / "larger"
    shutil.copytree(bench.out, larger)
    bench.out = larger
    assert bench("run") == 0
    assert len(bench.records()) == 9
    assert not differences({key: value for key, value in bench.records().items() if key in done}, done)


def test_an_output_folder_that_vanishes_ends_the_run_in_one_sentence(bench: Bench) -> None:
    bench.configure(**SLOW_GRID)
    run = bench.start("run", "--plugin", str(PLUGIN))
    wait_for(bench.out, "cells/*/unfinished/prune/method/state.safetensors")
    os.rename(bench.out, bench.folder / "elsewhere")
    said = run.communicate(timeout=100)
    assert run.returncode == 1, said
    assert "is gone; give the same command again" in said
    assert "Traceback" not in said


def test_a_clock_that_jumps_changes_no_duration(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    assert bench("run") == 0
    for record in (bench.record("magnitude"), bench.record("dense")):
        assert all(0 <= stage["seconds"] < 60 for stage in record["run"]["stages"])
