"""Four ways to run cells: here, one process a cell, as Ray tasks, as SLURM jobs. None schedules more than 'next, please'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from prunebench.experiments.config import RunSettings
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import View
from prunebench.experiments.stopping import Stop


class Executor(Protocol):
    """Runs jobs; yields each outcome as it comes. After `stop` is asked it starts no further job."""

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]: ...


def make_executor(settings: RunSettings) -> Executor:
    """The executor that the config asks for.

    Raises:
        BadInput: its extra isn't installed, no Ray cluster answers at the address, or this machine has no SLURM.
    """
    if settings.executor == "processes":
        from prunebench.experiments.executors.processes import ProcessExecutor

        return ProcessExecutor(settings)
    if settings.executor == "ray":
        from prunebench.experiments.executors.ray import RayExecutor

        return RayExecutor(settings)
    if settings.executor == "slurm":
        from prunebench.experiments.executors.slurm import SlurmExecutor

        return SlurmExecutor(settings)
    from prunebench.experiments.executors.local import LocalExecutor

    return LocalExecutor()
