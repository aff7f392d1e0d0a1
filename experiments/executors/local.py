"""Cells one after another in this process. Simple and quick; a crash of a cell is a crash of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import View
from prunebench.experiments.stopping import Stop


class LocalExecutor:
    """The next cell starts when the last one has ended."""

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]:
        from prunebench.experiments.run_cell import run_cell

        for job in jobs:
            if stop.is_asked:
                return
            yield run_cell(job, view.event, stop)
