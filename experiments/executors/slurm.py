"""Cells as SLURM jobs through submitit. SLURM schedules; the output folder must be one that all nodes see."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.experiments.config import RunSettings
from prunebench.experiments.executors.endings import STOPPED, Elsewhere, first_line
from prunebench.experiments.executors.environment import inherited_imports
from prunebench.experiments.executors.worker import run_job_text
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import View
from prunebench.experiments.stopping import Stop
from prunebench.models.errors import BadInput

POLL_SECONDS = 0.5
ACCOUNTING_SECONDS = 30.0
LATE_RESULT_SECONDS = 15.0
JOBS_FOLDER = "slurm"


@dataclass
class Submitted(Elsewhere):
    """A cell that SLURM has; `handle` is submitit's job."""

    handle: Any = None
    ended_at: float | None = None


class SlurmExecutor:
    """Each cell one job, at most `workers` of them in the queue; a job's log is slurm/CELL/ in the output folder."""

    def __init__(self, settings: RunSettings) -> None:
        try:
            import submitit
        except ImportError:
            raise BadInput("run.executor is slurm, but submitit is not installed; install prunebench[slurm].") from None
        if settings.slurm.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise BadInput(
                "run.executor is slurm, but this machine has no sbatch and srun; give the command on a login node of the cluster, "
                "or try the grid here with run.slurm.cluster = local."
            )
        self.submitit: Any = submitit
        self.settings = settings

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]:
        waiting = list(jobs)
        running: list[Submitted] = []
        asked = time.monotonic()
        limit = self.settings.cell_minutes
        try:
            while running or (waiting and not stop.is_asked):
                while waiting and len(running) < self.settings.workers and not stop.is_asked:
                    running.append(self._submit(waiting.pop(0)))
                if time.monotonic() - asked > ACCOUNTING_SECONDS:
                    running[0].handle.done(force_check=True)  # one question to SLURM's accounting answers for all jobs
                    asked = time.monotonic()
                for cell in list(running):
                    cell.follow(view)
                    if self._has_ended(cell):
                        running.remove(cell)
                        yield self._outcome(cell)
                    elif cell.took_longer_than(limit):
                        running.remove(cell)
                        cell.handle.cancel(check=False)
                        yield cell.end("failed", f"ended: the cell took more than run.cell_minutes = {limit:g}")
                if stop.is_asked:
                    yield from self._stop(running)
                    return
                view.tick()
                time.sleep(POLL_SECONDS)
        finally:
            for cell in running:
                cell.handle.cancel(check=False)

    def _submit(self, job: Job) -> Submitted:
        folder = Path(job.out) / JOBS_FOLDER / job.cell.id
        if "%" in str(folder):
            raise BadInput(f"output folder {job.out} has a % in its path, which SLURM would replace; choose another --out.")
        run, slurm = self.settings, self.settings.slurm
        cell = Submitted(job)
        executor = self.submitit.AutoExecutor(folder=folder, cluster=slurm.cluster)
        executor.update_parameters(
            name=f"prunebench-{job.cell.id}",
            timeout_min=slurm.time_minutes,
            cpus_per_task=int(run.cpus_per_cell),
            gpus_per_node=int(run.gpus_per_cell) or None,
            mem_gb=run.memory_gb_per_cell,
            stderr_to_stdout=True,
            slurm_use_srun=False,  # one task: the batch step has all that was allocated
            slurm_partition=slurm.partition,
            slurm_account=slurm.account,
            slurm_qos=slurm.qos,
            slurm_constraint=slurm.constraint,
            slurm_setup=list(slurm.setup) or None,
            slurm_additional_parameters=dict(slurm.options) or None,
        )
        try:
            with inherited_imports(), contextlib.redirect_stderr(io.StringIO()):  # submitit would print what the error says
                cell.handle = executor.submit(run_on_node, job.model_dump_json())
        except (self.submitit.core.utils.FailedJobError, self.submitit.core.utils.FailedSubmissionError) as error:
            raise BadInput(f"SLURM refused the job of cell {job.cell.id}: {first_line(error)}") from None
        return cell

    def _has_ended(self, cell: Submitted) -> bool:
        """Whether the job is over and its result, if there is one, has come through the shared file system."""
        if not cell.handle.done():
            return False
        if cell.ended_at is None:
            cell.ended_at = time.monotonic()
        late = LATE_RESULT_SECONDS if self.settings.slurm.cluster == "slurm" else 0.0
        return cell.handle.paths.result_pickle.exists() or time.monotonic() - cell.ended_at >= late

    def _outcome(self, cell: Submitted) -> Outcome:
        paths = cell.handle.paths
        try:
            if not paths.result_pickle.exists():
                return self._died(cell)
            return Outcome.model_validate_json(cell.handle.result())
        except self.submitit.core.utils.UncompletedJobError as error:
            trace = str(error).split("-" * 22)[-2]  # submitit's frame around the job's traceback
            return cell.end("failed", f"SLURM job {cell.handle.job_id} raised {trace.strip().splitlines()[-1][:300]}")
        finally:
            for pickled in (paths.submitted_pickle, paths.result_pickle):
                pickled.unlink(missing_ok=True)

    def _died(self, cell: Submitted) -> Outcome:
        """The row of a job that ended without an outcome, whatever its exit code."""
        run, handle = self.settings, cell.handle
        state = str(handle.state).upper()
        if state.startswith("OUT_OF_ME"):
            return cell.end("out_of_memory", f"SLURM ended the job for memory (run.memory_gb_per_cell = {run.memory_gb_per_cell})")
        if state.startswith("TIMEOUT"):
            return cell.end("failed", f"ended: the cell took more than run.slurm.time_minutes = {run.slurm.time_minutes}")
        if state.startswith("CANCELLED"):
            return cell.end("interrupted", f"SLURM job {handle.job_id} was cancelled; the same command goes on from there")
        log = handle.paths.stdout.relative_to(cell.job.out)
        return cell.end("failed", f"SLURM job {handle.job_id} ended as {state} without an outcome; see {log}")

    def _stop(self, running: list[Submitted]) -> Iterator[Outcome]:
        """Cancels the jobs; those that were at work get a row, those that waited their turn are left as they are."""
        at_work = [cell for cell in running if cell.at_work_since is not None]
        for cell in running:
            cell.handle.cancel(check=False)
        running.clear()
        for cell in at_work:
            yield cell.end("interrupted", STOPPED)


def run_on_node(text: str) -> str:
    """What a SLURM job runs: a job as JSON in, its outcome as JSON out."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit would ignore it; a cell that is ended goes on from its last stage
    return run_job_text(text)
