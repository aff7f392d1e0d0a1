"""Three ways to run cells: here, one process a cell, or as Ray tasks. None of them schedules more than 'next, please'."""

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


class LocalExecutor:
    """One cell after another in this process. Simple and quick; a crash of a cell is a crash of the run."""

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]:
        from prunebench.experiments.run_cell import run_cell

        for job in jobs:
            if stop.is_asked:
                return
            yield run_cell(job, view.event, stop)


def make_executor(settings: RunSettings) -> Executor:
    """The executor that the config asks for.

    Raises:
        BadInput: the `cluster` extra isn't installed, or no Ray cluster answers at the address.
    """
    if settings.executor == "processes":
        from prunebench.experiments.processes import ProcessExecutor

        return ProcessExecutor(settings)
    if settings.executor == "ray":
        from prunebench.experiments.ray_cluster import RayExecutor

        return RayExecutor(settings)
    return LocalExecutor()
