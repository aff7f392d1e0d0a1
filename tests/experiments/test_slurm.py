"""SLURM jobs, run by submitit's own stand-in for a cluster: the same submission, the jobs as processes of this machine."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from submitit.core.utils import JobPaths

from prunebench.experiments.cell import CellConfig
from prunebench.experiments.config import RunSettings
from prunebench.experiments.executors.slurm import SlurmExecutor, Submitted
from prunebench.experiments.job import Job
from prunebench.leaderboard.record import read_records
from prunebench.models.loading import ModelSpec
from tests.experiments.support import Bench, differences
from tests.experiments.test_faults import write_plugins
from tests.experiments.test_interruptions import PLUGIN, SLOW_GRID, wait_for

HERE = {"executor": "slurm", "workers": 3, "slurm": {"cluster": "local"}}


@pytest.mark.slow
def test_jobs_give_the_records_of_local_and_one_that_dies_is_a_failed_row(bench: Bench) -> None:
    bench.configure(grid={"method": ["magnitude", "exits_quietly_there"], "dense": False}, run=HERE)
    assert bench("run", *write_plugins(bench.folder, ["exits_quietly"], "_there")) == 1
    records, problems = read_records(bench.out)
    assert not problems
    rows = {record.run.method: (record.run.status, record.run.reason) for record in records}
    assert rows["magnitude"] == ("done", "")
    assert rows["exits_quietly_there"][0] == "failed"
    assert "ended as FINISHED without an outcome" in rows["exits_quietly_there"][1]
    assert len(list(bench.out.glob(f"slurm/{bench.cell('magnitude').name}/*_log.out"))) == 1
    assert not list(bench.out.rglob("*.pkl"))
    on_slurm = bench.records()
    bench.out = bench.folder / "local"
    bench.configure(grid={"method": ["magnitude"], "dense": False})
    assert bench("run") == 0
    assert not differences({cell: on_slurm[cell] for cell in bench.records()}, bench.records())


@pytest.mark.slow
def test_a_stop_cancels_the_jobs_and_the_same_command_goes_on(bench: Bench) -> None:
    grid = {**SLOW_GRID, "grid": {**SLOW_GRID["grid"], "sparsity": [0.2, 0.4], "dense": False}}
    bench.configure(**grid, run={**HERE, "workers": 1})
    run = bench.start("run", "--plugin", str(PLUGIN))
    wait_for(bench.out, "cells/*/unfinished/prune/method/state.safetensors")
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "The same command goes on from there" in said
    assert "Traceback" not in said
    (record,) = bench.records().values()  # the cell that waited its turn has none
    assert record["run"]["status"] == "interrupted"
    bench.configure(**grid)
    assert bench("run", "--plugin", str(PLUGIN)) == 0
    assert [len(record["metrics"]["curves"]["prune: loss"]) for record in bench.records().values()] == [25, 25]


class Ended:
    """A job that SLURM says ended in `state`, without a result."""

    job_id = "7"

    def __init__(self, state: str, folder: Path) -> None:
        self.state = state
        self.paths = JobPaths(folder, self.job_id)


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ("OUT_OF_MEMORY", "out_of_memory", "run.memory_gb_per_cell = 4"),
        ("TIMEOUT", "failed", "run.slurm.time_minutes = 30"),
        ("CANCELLED by 1000", "interrupted", "goes on from there"),
        ("NODE_FAIL", "failed", "SLURM job 7 ended as NODE_FAIL without an outcome; see 7_0_log.out"),
        ("COMPLETED", "failed", "without an outcome"),
    ],
)
def test_what_slurm_says_of_a_job_becomes_the_row(copy_of_finished: Bench, tmp_path: Path, state: str, status: str, words: str) -> None:
    bench = copy_of_finished
    cell = CellConfig.model_validate_json((bench.cell("magnitude") / "cell.json").read_text())
    settings = RunSettings.model_validate({**HERE, "memory_gb_per_cell": 4, "slurm": {"cluster": "local", "time_minutes": 30}})
    submitted = Submitted(Job(out=str(tmp_path), cell=cell, model=ModelSpec(name=str(bench.model))), handle=Ended(state, tmp_path))
    outcome = SlurmExecutor(settings)._outcome(submitted)
    assert outcome.status == status
    assert words in outcome.reason
    ((record,), problems) = read_records(tmp_path)
    assert (record.run.status, record.run.reason, problems) == (outcome.status, outcome.reason, [])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["run.gpus_per_cell=0.5"], "gpus_per_cell = 0.5 with executor slurm: expected a whole number"),
        (["run.cpus_per_cell=1.5"], "cpus_per_cell = 1.5"),
        (["run.slurm.time_minutes=0"], "run.slurm.time_minutes"),
        (["run.slurm.partitions=gpu"], "Did you mean 'partition'?"),
        (['run.slurm.partition="a\\nb"'], "run.slurm.partition"),
        (["run.slurm.options={mem: 4G}"], "mem is set by run.memory_gb_per_cell"),
        (["run.slurm.options={Time: 4}"], "run.slurm.options"),
        (["run.slurm.options={exclusive: false}"], "run.slurm.options.exclusive"),
        ([], "no sbatch and srun"),
    ],
)
def test_what_slurm_could_not_take_is_refused_in_one_sentence(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, settings: list[str], words: str
) -> None:
    monkeypatch.setenv("PATH", str(bench.folder))
    assert bench("run", "--set", "run.executor=slurm", *(word for setting in settings for word in ("--set", setting))) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert words in said[-1]
    assert not bench.out.exists()


def test_without_submitit_the_error_names_the_extra(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert bench("run", "--set", "run.executor=slurm") == 2
    assert "install prunebench[slurm]" in capsys.readouterr().err


def test_a_percent_sign_in_the_output_folder_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.configure(run=HERE)
    bench.out = bench.folder / "50%test"
    assert bench("run") == 2
    assert "has a % in its path" in capsys.readouterr().err
