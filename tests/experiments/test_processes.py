"""Cells in processes of their own: where they come from, what they see of the run, and that none outlives it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest

from prunebench.experiments.cell import CellConfig
from prunebench.experiments.config import RunSettings
from prunebench.experiments.executors.endings import write_ending
from prunebench.experiments.executors.environment import inherited_imports, python_path
from prunebench.experiments.executors.processes import ProcessExecutor, Worker, forked
from prunebench.experiments.job import Job
from prunebench.models.loading import ModelSpec
from tests.experiments.support import ROOT, Bench
from tests.experiments.test_faults import check_rows, write_plugins
from tests.experiments.test_interruptions import PLUGIN, SLOW_GRID, wait_for

TELLTALE = """
import json, os, sys, threading
import torch
from prunebench.methods.pruner import Pruner, PrunerConfig
from prunebench.methods.registry import register

@register("telltale")
class Telltale(Pruner[PrunerConfig]):
    needs_calibration = False

    def prune(self, model, budget, data, run):
        server = f"/proc/{os.getppid()}"
        told = {
            "environment": dict(os.environ),
            "path": sys.path,
            "leads_its_session": os.getsid(0) == os.getpid(),
            "is_preloaded": "lm_eval.tasks" in sys.modules,
            "gpu": torch.cuda.is_initialized(),
            "threads_of_server": [open(f"{server}/task/{task}/comm").read().strip() for task in os.listdir(f"{server}/task")],
            "environment_of_server": open(f"{server}/environ").read().split("\\0"),
        }
        with open(os.environ["TELLTALE"], "w") as file:
            json.dump(told, file)
        raise RuntimeError("told")
"""


def telltale(bench: Bench) -> str:
    path = bench.folder / "telltale.py"
    path.write_text(TELLTALE)
    bench.configure(grid={"method": ["telltale"], "dense": False}, run={"executor": "processes"})
    return str(path)


def test_a_worker_sees_the_run_as_it_is_and_the_users_script_does_not_run_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    script = bench.folder / "unguarded.py"
    script.write_text(f"open({str(bench.folder / 'ran-again')!r}, 'w').close()\n")
    main = types.ModuleType("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setenv("TELLTALE", str(bench.folder / "told.json"))
    monkeypatch.setenv("PYTHONPATH", "/somewhere/of/the/user")
    assert bench("run", "--plugin", telltale(bench)) == 1
    told = json.loads((bench.folder / "told.json").read_text())
    assert told["environment"].items() >= dict(os.environ).items()
    assert "PYTHONSAFEPATH" not in told["environment"]
    assert [entry for entry in told["path"] if entry in sys.path] == sys.path
    assert told["leads_its_session"]
    assert not told["gpu"]
    assert set(told["threads_of_server"]) - {"jemalloc_bg_thd"} == {told["threads_of_server"][0]}
    assert not (bench.folder / "ran-again").exists()


@pytest.mark.slow
def test_a_script_in_another_folder_gets_workers_with_everything_imported(bench: Bench) -> None:
    elsewhere = bench.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "datasets.py").write_text("raise SystemExit('the folder of the run came first')\n")
    script = bench.folder / "mine.py"  # without `if __name__ == "__main__"`
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom prunebench.run_all import main\nsys.exit(main(sys.argv[1:]))\n")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment["TELLTALE"] = str(bench.folder / "told.json")
    run = subprocess.run(
        [sys.executable, script, *bench.arguments("run", "--plugin", telltale(bench))],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    told = json.loads((bench.folder / "told.json").read_text())
    assert told["is_preloaded"]
    assert "OMP_WAIT_POLICY=passive" in told["environment_of_server"]
    assert told["environment"]["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.slow
def test_workers_and_their_server_die_with_a_run_that_is_killed(bench: Bench) -> None:
    bench.configure(**SLOW_GRID, run={"executor": "processes"})
    run = bench.start("run", "--plugin", str(PLUGIN))
    wait_for(bench.out, "cells/*/unfinished/prune/method/state.safetensors")
    wait_for(bench.out, "cells/*/progress.json")
    (progress,) = bench.out.glob("cells/*/progress.json")
    worker = psutil.Process(json.loads(progress.read_text())["pid"])
    server = worker.parent()
    assert server is not None
    run.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs([worker, server], timeout=20)
    assert len(gone) == 2, alive
    run.communicate(timeout=20)


@pytest.mark.slow
def test_a_cell_that_kills_the_server_is_one_failed_row(bench: Bench) -> None:
    bench.configure(grid={"method": ["kills_server", "magnitude"], "dense": False}, run={"executor": "processes"})
    plugins = write_plugins(bench.folder, ["kills_server"])
    assert bench("run", *plugins) == 1
    check_rows(bench, ["kills_server"])
    assert bench.record("magnitude")["run"]["status"] == "done"


def job_of(bench: Bench, out: Path) -> Job:
    cell = CellConfig.model_validate_json((bench.cell("magnitude") / "cell.json").read_text())
    return Job(out=str(out), cell=cell, model=ModelSpec(name=str(bench.model)))


def test_a_row_never_replaces_a_record_that_got_through(copy_of_finished: Bench) -> None:
    path = copy_of_finished.cell("magnitude") / "record.json"
    before = path.read_bytes()
    outcome = write_ending(job_of(copy_of_finished, copy_of_finished.out), "failed", "ended: it took too long")
    assert outcome.status == "done"
    assert path.read_bytes() == before


@pytest.mark.parametrize(("stop_sent", "status", "words"), [(1.0, "interrupted", "stopped by the user"), (None, "failed", "SIGTERM")])
def test_a_worker_that_a_stop_finds_unprepared_is_interrupted_not_failed(
    finished: Bench, tmp_path: Path, stop_sent: float | None, status: str, words: str
) -> None:
    process = forked(time.sleep, 60)
    process.terminate()
    process.join()
    receiver, _ = multiprocessing.Pipe(duplex=False)
    worker = Worker(job_of(finished, tmp_path), process, receiver, stop_sent=stop_sent)
    outcome = ProcessExecutor(RunSettings(executor="processes"))._died(worker)
    assert outcome.status == status
    assert words in outcome.reason


def test_a_new_interpreter_imports_from_where_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("first", "second", "cwd"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "whose.py").write_text(f"name = {folder!r}\n")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second"), *sys.path])
    ask = [sys.executable, "-c", "import whose, prunebench; print(whose.name)"]
    with inherited_imports():
        assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "first\n"
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.parametrize("user_comes_first", [True, False])
def test_another_machine_gets_the_users_entries_and_ours_in_the_order_of_sys_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_comes_first: bool
) -> None:
    user = [str(tmp_path / "a"), str(tmp_path / "b")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*user, ""]))
    monkeypatch.setattr(sys, "path", [*user, str(ROOT), "/opt"] if user_comes_first else [str(ROOT), *user, "/opt"])
    expected = [*user, str(ROOT)] if user_comes_first else [str(ROOT), *user]
    assert python_path().split(os.pathsep) == expected
