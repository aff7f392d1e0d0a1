"""`plan`: the cells of a grid, with an estimate of time and memory."""

from __future__ import annotations

from prunebench.experiments.commands.options import Cells
from prunebench.experiments.commands.request import understand


def plan(cells: Cells) -> int:
    """Lists the cells with an estimate of time and memory; touches nothing."""
    from prunebench.experiments.commands.estimate import plan_table
    from prunebench.experiments.run_grid import absent_models, check_feasible

    request = understand(cells)
    check_feasible(request.cells, request.data, strictly=True)
    for note in absent_models(request.cells):
        print(f"note: {note}")
    print(plan_table(request.config, request.cells, request.out))
    return 0
