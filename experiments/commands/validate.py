"""`validate`: config, plugins, names, models and data are looked at; nothing runs."""

from __future__ import annotations

from prunebench.experiments.commands.options import Cells
from prunebench.experiments.commands.request import understand


def validate(cells: Cells) -> int:
    """Checks config, plugins, models, data and names; runs nothing."""
    from prunebench.experiments.run_grid import absent_models, check_feasible
    from prunebench.methods.registry import known_pruners

    request = understand(cells)
    check_feasible(request.cells, request.data, strictly=True)
    for note in absent_models(request.cells):
        print(f"note: {note}")
    print(f"ok: {len(request.cells)} cells")
    for cell in request.cells:
        print(f"  {cell.id}  {cell.title}")
    print("methods:")
    for info in known_pruners().values():
        print(f"  {info.name}: {info.origin}")
    return 0
