"""Archives of finished cells bring back what a page and a run need, and nothing that isn't done is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.kept_records import keep, restore
from tests.experiments.support import Bench


def cells(bench: Bench) -> list[str]:
    return [path.parent.name for path in bench.record_paths()]


def test_restored_cells_are_the_kept_ones_and_are_not_run_again(copy_of_finished: Bench, tmp_path: Path) -> None:
    bench = copy_of_finished
    before = {path: path.read_bytes() for path in [*bench.record_paths(), *bench.out.glob("cells/*/samples/*")]}
    keep(bench.out, tmp_path, cells(bench))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{cell}.zip" for cell in cells(bench))
    kept = cells(bench)
    shutil.rmtree(bench.out)
    restore(tmp_path, bench.out, [*kept, "never-run"])
    assert {path: path.read_bytes() for path in before} == before
    assert bench("run") == 0
    assert {path: path.read_bytes() for path in before} == before


def test_the_same_cell_gives_the_same_bytes(finished: Bench, tmp_path: Path) -> None:
    for name in ("first", "second"):
        keep(finished.out, tmp_path / name, cells(finished))
    for archive in (tmp_path / "first").iterdir():
        assert archive.read_bytes() == (tmp_path / "second" / archive.name).read_bytes()


def test_a_record_that_was_touched_is_not_kept(copy_of_finished: Bench, tmp_path: Path) -> None:
    record = copy_of_finished.record_paths()[0]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"metrics": None}))
    keep(copy_of_finished.out, tmp_path, cells(copy_of_finished))
    assert len(list(tmp_path.iterdir())) == len(cells(copy_of_finished)) - 1
    assert not (tmp_path / f"{record.parent.name}.zip").exists()


def test_a_finished_cell_is_not_overwritten_by_its_archive(copy_of_finished: Bench, tmp_path: Path) -> None:
    keep(copy_of_finished.out, tmp_path, cells(copy_of_finished))
    path = copy_of_finished.record_paths()[0]
    before = path.stat().st_mtime_ns
    restore(tmp_path, copy_of_finished.out, cells(copy_of_finished))
    assert path.stat().st_mtime_ns == before
