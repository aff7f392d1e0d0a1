"""`export`: copies a pruned checkpoint out of the results, after checking it against the hashes of its stage."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.experiments.commands.options import Cells
from prunebench.experiments.commands.request import understand
from prunebench.models.errors import BadInput

if TYPE_CHECKING:
    from prunebench.experiments.plan import PlannedCell


def export(cells: Cells, to: Annotated[Path, typer.Option(metavar="DIR", help="new folder for the checkpoint")]) -> int:
    """Copies the pruned checkpoint of one cell out of the results."""
    request = understand(cells, needs_protocols=False)
    if len(request.cells) != 1:
        raise BadInput(f"export takes one cell, these options name {len(request.cells)}; pick one with --only ID.")
    print(f"checkpoint: {export_checkpoint(request.cells[0], request.out, to)}")
    return 0


def export_checkpoint(cell: PlannedCell, out: Path, target: Path) -> Path:
    """Copies the checkpoint of `cell` (recovered, where there is one) to the new folder `target`, whole or not at all.

    Raises:
        BadInput: no checkpoint yet, a damaged one, or a target that exists or can't be written.
    """
    from prunebench.experiments import stages
    from prunebench.experiments.cell_folder import TEMPORARY_PREFIX, CellFolder

    if cell.config.is_dense:
        raise BadInput("the dense cell has no checkpoint of its own; it is the model that the grid names.")
    stage, name = ("recover", stages.RECOVERED) if cell.config.recovery != "none" else ("slice", stages.CHECKPOINT)
    folder = CellFolder(out, cell.id)
    if not folder.stamp_path(stage).exists():
        raise BadInput(f"cell {cell.id} ({cell.title}) has no checkpoint in {out}; run the verb prune for it first.")
    if not folder.stamp_is_whole(stage):
        raise BadInput(f"the checkpoint of cell {cell.id} in {out} is damaged; give the run command again, which redoes it.")
    if target.exists():
        raise BadInput(f"--to {target} exists already; give a new folder.")
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder.path / name, temporary)
        os.replace(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BadInput(f"--to {target} can't be written ({error.strerror or error}); choose another folder.") from None
    return target
