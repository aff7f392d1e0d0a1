"""`run`: every cell of a grid that isn't done, then the page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunebench.experiments.commands.options import RunningCells
from prunebench.experiments.commands.report import build_page
from prunebench.experiments.commands.request import Request, understand

if TYPE_CHECKING:
    from prunebench.experiments.run_grid import GridResult


def run(
    context: typer.Context,
    cells: RunningCells,
    no_report: Annotated[bool, typer.Option("--no-report", help="don't build the page at the end")] = False,
) -> int:
    """Runs every cell of a grid that isn't done, then builds the page."""
    request = understand(cells)
    result = run_cells(cells, request, "record")
    if not no_report and not result.was_stopped and result.output_error is None:
        print(f"page: {build_page(request.out, context.obj)}")
    return result.exit_code


def run_cells(cells: RunningCells, request: Request, until: Literal["prune", "record"], *, needs_checkpoint: bool = False) -> GridResult:
    """Takes the cells of a request along the road, and says how it went.

    Args:
        until: `prune` stops once the pruned checkpoint is written.
        needs_checkpoint: go on from pruned checkpoints that are there; prune nothing.
    """
    from prunebench.experiments.cell_folder import CellFolder, prepare_output_folder
    from prunebench.experiments.checks.lookups import fetch_data
    from prunebench.experiments.executors import make_executor
    from prunebench.experiments.progress import make_view
    from prunebench.experiments.run_cell import finished_record
    from prunebench.experiments.run_grid import check_feasible, fetch_models, make_jobs, run_grid
    from prunebench.experiments.stopping import Stop, stop_on_signals

    left = [cell for cell in request.cells if finished_record(CellFolder(request.out, cell.id)) is None]
    check_feasible(left, request.data, until, prunes=not needs_checkpoint)
    fetch_models(left)
    check_feasible(left, request.data, until, prunes=not needs_checkpoint)
    fetch_data(left, request.data, until, prunes=not needs_checkpoint)
    executor = make_executor(request.config.run)
    prepare_output_folder(request.out)
    jobs = make_jobs(
        request.config,
        request.cells,
        request.out,
        data_dir=request.data,
        plugins=request.plugins,
        command=request.command,
        until=until,
        needs_checkpoint=needs_checkpoint,
    )
    stop = Stop()
    titles = {cell.id: cell.title for cell in request.cells}
    with stop_on_signals(stop):
        result = run_grid(executor, jobs, titles, request.out, make_view(cells.plain), stop, retry=not cells.no_retry)
    print(f"{request.out}: {result.text()}")
    if result.output_error is not None:
        print(f"error: {result.output_error}", file=sys.stderr)
    elif result.was_stopped:
        print("stopped; nothing that was finished is lost. The same command goes on from there.", file=sys.stderr)
    return result
