"""Runs the cells of a grid that aren't done yet, and says how each ended."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prunebench.experiments.cell_folder import CellFolder, output_error
from prunebench.experiments.checks.lengths import check_lengths
from prunebench.experiments.checks.lookups import check_sources
from prunebench.experiments.checks.methods import check_methods
from prunebench.experiments.checks.model import check_sparsity
from prunebench.experiments.checks.rehearsal import rehearse_cells
from prunebench.experiments.config import GridConfig
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.plan import PlannedCell
from prunebench.experiments.progress import StoppingView, View
from prunebench.experiments.run_cell import FINAL, finished_record
from prunebench.experiments.stopping import Stop
from prunebench.models.errors import BadInput
from prunebench.models.loading import EMBEDDED_PREFIX, check_loads, resolve_model

if TYPE_CHECKING:
    from prunebench.experiments.executors import Executor

log = logging.getLogger(__name__)

BUSY_POLL_SECONDS = 2.0


@dataclass
class GridResult:
    """How a run ended.

    Attributes:
        asked: ids of the cells that were asked for.
        statuses: final status of each that has one, by id.
        reasons: why, for those that aren't done.
        was_stopped: the user ended the run.
        output_error: why the output folder failed, if it did.
    """

    asked: tuple[str, ...] = ()
    statuses: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    was_stopped: bool = False
    output_error: str | None = None

    @property
    def exit_code(self) -> int:
        if self.was_stopped:
            return 130
        good = ("done", "skipped", "pruned")
        return 0 if self.output_error is None and all(self.statuses.get(cell) in good for cell in self.asked) else 1

    def note(self, outcome: Outcome) -> None:
        self.statuses[outcome.cell_id] = outcome.status
        self.reasons[outcome.cell_id] = outcome.reason

    def text(self) -> str:
        counts = Counter(self.statuses.get(cell, "left") for cell in self.asked)
        return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing to do"


def make_jobs(
    config: GridConfig,
    cells: Sequence[PlannedCell],
    out: Path,
    *,
    data_dir: Path | None,
    plugins: Sequence[Path],
    command: str,
    until: Literal["prune", "record"] = "record",
    needs_checkpoint: bool = False,
) -> list[Job]:
    """One job a cell. `command` is what gives the cell again; the cell's id is appended."""
    threads = max(1, int(config.run.cpus_per_cell)) if config.run.executor != "local" else None
    return [
        Job(
            out=str(out.resolve()),
            cell=cell.config,
            model=cell.model,
            data_dir=str(data_dir.resolve()) if data_dir is not None else None,
            plugins=tuple(str(plugin.resolve()) for plugin in plugins),
            command=f"{command} --only {cell.id}",
            threads=threads,
            token_budget=config.run.token_budget,
            keep_checkpoints=config.run.keep_checkpoints,
            until=until,
            needs_checkpoint=needs_checkpoint,
        )
        for cell in cells
    ]


def check_feasible(
    cells: Sequence[PlannedCell],
    data_dir: Path | None,
    until: Literal["prune", "record"] = "record",
    *,
    prunes: bool = True,
    strictly: bool = False,
) -> None:
    """Refuses what can't be loaded, read, pruned or reached, before anything is fetched or written.

    A model that isn't here yet passes; call this again once it is (see `fetch_models`).

    Args:
        until: with `prune`, nothing is evaluated.
        prunes: False where the cells are pruned already.
        strictly: refuse a method whose `supports()` fails; a run goes on, with a failed row for each of its cells.

    Raises:
        BadInput: a method or recovery whose code fails when it is asked, files of a model that don't fit each other, a
            model that can't be pruned, a length that a model's context has no room for, text or data that are nowhere.
        BudgetError: a sparsity that a model can't reach.
    """
    for model in dict.fromkeys(cell.model for cell in cells):
        check_loads(model)
    check_methods(cells, strictly=strictly)
    if prunes:
        rehearse_cells(cells)
        asked = {(cell.model, cell.config.sparsity, cell.config.basis) for cell in cells if cell.config.sparsity is not None}
        for model, sparsity, basis in sorted(asked, key=str):
            assert sparsity is not None  # filtered above
            check_sparsity(model, sparsity, basis)
    check_lengths(cells, until)
    check_sources(cells, data_dir, until, prunes=prunes)


def absent_models(cells: Sequence[PlannedCell]) -> list[str]:
    """A sentence for each model whose files aren't here yet, so that `check_feasible` has not looked at it."""
    models = dict.fromkeys(cell.model for cell in cells)
    return [
        f"model {model.name} isn't here yet; its files are checked, and whether it can be pruned, when a run has fetched them"
        for model in models
        if check_loads(model) is None
    ]


def fetch_models(cells: Sequence[PlannedCell]) -> None:
    """Fetches and converts what the cells need, so that a broken model ends the run before it starts.

    Raises:
        BadInput: a model that can't be read, a file that is cut, an asset that can't be had.
    """
    for model in dict.fromkeys(cell.model for cell in cells):
        if model.name.startswith(EMBEDDED_PREFIX):
            log.info("looking for %s in the cache", model.name)
        resolve_model(model)


def run_grid(
    executor: Executor, jobs: Sequence[Job], titles: dict[str, str], out: Path, view: View, stop: Stop, *, retry: bool = True
) -> GridResult:
    """Runs `jobs` until each has a final state or the user stops.

    Cells that another run holds are left to it; in the end this waits for them and takes over what the other didn't
    finish.

    Args:
        retry: run cells again that failed, ran out of memory or were interrupted before.
    Raises:
        BadInput: something that the user must mend first turned up in a cell.
    """
    result = GridResult(tuple(job.cell.id for job in jobs))
    view = StoppingView(view, stop)
    waiting = []
    for job in jobs:
        record = settled(job, retry=retry)
        if record is None:
            waiting.append(job)
        else:
            result.statuses[job.cell.id] = record
    view.start({job.cell.id: titles[job.cell.id] for job in waiting}, len(jobs) - len(waiting))
    try:
        while waiting and not stop.is_asked and result.output_error is None:
            busy = []
            by_id = {job.cell.id: job for job in waiting}
            for outcome in executor.execute(waiting, view, stop):
                if outcome.status == "busy":
                    busy.append(by_id[outcome.cell_id])
                    continue
                if outcome.status == "bad_input":
                    raise BadInput(outcome.reason)
                if outcome.status == "output_error":
                    result.output_error = outcome.reason
                    break
                result.note(outcome)
                view.finished(outcome.cell_id, outcome.status, outcome.reason)
            if len(busy) == len(waiting):
                wait_for_others(busy, stop)
            waiting = busy
    except OSError as error:
        known = output_error(out, error)
        if known is None:
            raise
        result.output_error = str(known)
    finally:
        view.close()
    result.was_stopped = stop.is_asked
    return result


def settled(job: Job, *, retry: bool = True) -> str | None:
    """The final status of a job that needs no more work, or None."""
    folder = CellFolder(Path(job.out), job.cell.id)
    record = finished_record(folder, statuses=FINAL if retry else (*FINAL, "failed", "out_of_memory"))
    if record is None or any(not folder.stamp_is_whole(path.stem) for path in (folder.path / "stages").glob("*.json")):
        return None
    return record.run.status


def wait_for_others(jobs: Sequence[Job], stop: Stop) -> None:
    """Waits until one of the cells that another run holds is free."""
    log.info("another run works on the last %d cells; waiting for it", len(jobs))
    folders = [CellFolder(Path(job.out), job.cell.id) for job in jobs]
    while not stop.is_asked and all(folder.is_locked() for folder in folders):
        time.sleep(BUSY_POLL_SECONDS)
