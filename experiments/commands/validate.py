"""`validate`: config, plugins, names, models and data are looked at; nothing runs."""

from __future__ import annotations

from prunebench.experiments.commands.options import Cells
from prunebench.experiments.commands.request import understand


def validate(cells: Cells) -> int:
    """Checks config, plugins, models, data and names; runs nothing."""
    from prunebench.experiments.run_grid import check_feasible
    from prunebench.methods.registry import known_pruners
    from prunebench.models.loading import check_loads

    request = understand(cells)
    check_feasible(request.cells, request.data, strictly=True)
    for model in dict.fromkeys(cell.model for cell in request.cells):
        if check_loads(model) is None:
            print(f"note: model {model.name} isn't here yet; its files are checked when the run fetches them")
    print(f"ok: {len(request.cells)} cells")
    for cell in request.cells:
        print(f"  {cell.id}  {cell.title}")
    print("methods:")
    for info in known_pruners().values():
        print(f"  {info.name}: {info.origin}")
    return 0
