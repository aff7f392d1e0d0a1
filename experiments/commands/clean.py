"""`clean`: deletes what killed runs left, and on request checkpoints or whole cells, of one grid only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.experiments.commands.options import Cells
from prunebench.experiments.commands.request import understand

if TYPE_CHECKING:
    from prunebench.experiments.plan import PlannedCell


def clean(
    cells: Cells,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="also delete the checkpoints of cells that have their record")] = False,
    everything: Annotated[bool, typer.Option("--all", help="delete the cells of this grid altogether")] = False,
) -> int:
    """Deletes what killed runs left, and set-aside files."""
    request = understand(cells, needs_protocols=False)
    said, is_clean = clean_cells(request.cells, request.out, checkpoints=checkpoints, everything=everything)
    print(said)
    return 0 if is_clean else 1


def clean_cells(cells: Sequence[PlannedCell], out: Path, *, checkpoints: bool, everything: bool) -> tuple[str, bool]:
    """Cleans the folders of `cells`; a cell that a run works on is left alone.

    Returns:
        a sentence, and whether nothing was left that should go.
    """
    from prunebench.experiments import stages
    from prunebench.experiments.cell_folder import CellFolder, remove
    from prunebench.experiments.run_cell import finished_record

    freed, busy, stuck = 0, 0, 0
    for cell in cells:
        folder = CellFolder(out, cell.id)
        if not folder.path.is_dir():
            continue
        before = folder_bytes(folder.path)
        with folder.lock() as mine:
            if not mine:
                busy += 1
                continue
            folder.tidy()
            remove(folder.path / "set-aside")
            if finished_record(folder) is not None:
                remove(folder.path / "unfinished")
                if checkpoints:
                    for stage, name in (("slice", stages.CHECKPOINT), ("recover", stages.RECOVERED)):
                        folder.stamp_path(stage).unlink(missing_ok=True)
                        remove(folder.path / name)
            if everything:
                shutil.rmtree(folder.path, ignore_errors=True)
                stuck += folder.path.exists()
        freed += before - (folder_bytes(folder.path) if folder.path.is_dir() else 0)
    note = f"; {busy} left alone, a run works on them" if busy else ""
    note += f"; {stuck} can't be deleted" if stuck else ""
    return f"{out}: {freed / 1e6:.1f} MB freed{note}", not busy and not stuck


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
