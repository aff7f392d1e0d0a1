"""The records behind docs/findings: one archive a finished cell, records/<cell id>.zip, with its record, outcomes and masks.

A page can be made again from them, and of its grid only the missing cells run. A cell is known by its settings, not by the code
that ran it: when a method's results change, delete its archives.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from prunebench.experiments.cell_folder import CellFolder
from prunebench.experiments.run_cell import finished_record

WHEN = (1980, 1, 1, 0, 0, 0)
"""Time of every file in an archive: the same cell gives the same bytes."""


def restore(records: Path, out: Path, cells: Iterable[str]) -> None:
    """Unpacks the archives of those of `cells` that `out` doesn't have finished."""
    for cell in sorted(cells):
        folder, archive = CellFolder(out, cell), records / f"{cell}.zip"
        if archive.exists() and finished_record(folder) is None:
            folder.path.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder.path)


def keep(out: Path, records: Path, cells: Iterable[str]) -> None:
    """Packs those of `cells` that are done in `out` and have no archive yet."""
    for cell in sorted(cells):
        folder, archive = CellFolder(out, cell), records / f"{cell}.zip"
        if archive.exists() or finished_record(folder, ("done",)) is None:
            continue
        records.mkdir(parents=True, exist_ok=True)
        files = [folder.record_file, folder.seal_file, folder.path / "masks.safetensors", *sorted(folder.path.glob("samples/*"))]
        temporary = archive.with_suffix(".tmp")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
            for file in files:
                if file.exists():
                    name = file.relative_to(folder.path).as_posix()
                    packed.writestr(zipfile.ZipInfo(name, WHEN), file.read_bytes(), zipfile.ZIP_DEFLATED)
        temporary.replace(archive)
