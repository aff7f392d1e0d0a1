"""`prune`: the first half of the cells, up to the pruned checkpoint."""

from __future__ import annotations

from prunebench.experiments.commands.options import RunningCells
from prunebench.experiments.commands.request import understand
from prunebench.experiments.commands.run import run_cells
from prunebench.models.errors import BadInput


def prune(cells: RunningCells) -> int:
    """Takes the first half of the cells: prune, slice, recover; leaves checkpoints for `evaluate`."""
    request = understand(cells, needs_protocols=False)
    request.cells = [cell for cell in request.cells if not cell.config.is_dense]
    if not request.cells:
        raise BadInput("there is nothing to prune: name a method and a sparsity, for example --method magnitude --sparsity 0.2.")
    result = run_cells(cells, request, "prune")
    for cell in request.cells:
        if result.statuses.get(cell.id) in ("pruned", "done"):
            print(f"{cell.title}: {request.out / 'cells' / cell.id}")
    return result.exit_code
