"""Archives bring back what a page and a run need, nothing that isn't done is kept, and the manifest tells what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from findings.kept import MANIFEST, Kept
from findings.question import ROOT, known_questions
from prunebench.models.errors import BadInput
from prunebench.models.files import sha256_of
from tests.findings.conftest import Desk


def test_the_kept_records_are_those_of_the_manifest() -> None:
    kept = Kept(ROOT / "records")
    assert kept.entries
    assert kept.problems() == []
    assert {name for entry in kept.entries.values() for name in (*entry.questions, *entry.cited_by)} <= set(known_questions())


def results(desk: Desk, out: Path) -> dict[str, bytes]:
    """Every record and outcome of the desk's cells in an output folder."""
    files = [path for cell in desk.archives for path in (out / "cells" / cell).rglob("*") if path.suffix in (".json", ".parquet")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files if "stages" not in path.parts}


def test_restored_cells_are_the_kept_ones_and_are_not_run_again(answered: Desk, desk: Desk) -> None:
    ran, out = answered.bench.folder / "out", desk.bench.folder / "restored"
    desk.kept.restore(out, desk.archives)
    before = results(desk, out)
    assert before
    assert before.items() <= results(answered, ran).items()
    assert desk.build(out="restored") == 0
    assert results(desk, out) == before


def test_the_same_cell_gives_the_same_bytes(answered: Desk, tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.keep(answered.bench.folder / "out", answered.archives)
    assert {path.stem: path.read_bytes() for path in tmp_path.glob("*.zip")} == answered.archives


def test_a_record_that_was_touched_is_not_kept(answered: Desk, tmp_path: Path) -> None:
    out = shutil.copytree(answered.bench.folder / "out", tmp_path / "out")
    touched = sorted(answered.archives)[0]
    record = out / "cells" / touched / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"metrics": None}))
    kept = Kept(tmp_path / "records")
    kept.keep(out, answered.archives)
    assert kept.entries.keys() == answered.archives.keys() - {touched}
    assert not kept.archive(touched).exists()


def test_a_finished_cell_is_not_overwritten_by_its_archive(desk: Desk) -> None:
    out = desk.bench.folder / "restored"
    desk.kept.restore(out, desk.archives)
    (first, *_) = desk.archives
    path = out / "cells" / first / "record.json"
    before = path.stat().st_mtime_ns
    desk.kept.restore(out, desk.archives)
    assert path.stat().st_mtime_ns == before


def lost(archive: Path, manifest: Path) -> None:
    archive.unlink()


def changed(archive: Path, manifest: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"x")


def unlisted(archive: Path, manifest: Path) -> None:
    manifest.write_text(json.dumps({cell: entry for cell, entry in json.loads(manifest.read_text()).items() if cell != archive.stem}))


def of_another_cell(archive: Path, manifest: Path) -> None:
    other = next(path for path in archive.parent.glob("*.zip") if path != archive)
    shutil.copyfile(other, archive)
    listed = json.loads(manifest.read_text())
    listed[archive.stem]["sha256"] = listed[other.stem]["sha256"]
    manifest.write_text(json.dumps(listed))


def no_record(archive: Path, manifest: Path) -> None:
    archive.write_text("not an archive")
    listed = json.loads(manifest.read_text())
    listed[archive.stem]["sha256"] = sha256_of(archive)
    manifest.write_text(json.dumps(listed))


def described_otherwise(archive: Path, manifest: Path) -> None:
    listed = json.loads(manifest.read_text())
    listed[archive.stem]["seed"] = 7
    manifest.write_text(json.dumps(listed))


def shown_by_nobody(archive: Path, manifest: Path) -> None:
    listed = json.loads(manifest.read_text())
    listed[archive.stem]["questions"] = []
    manifest.write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("damage", "words", "is_used"),
    [
        (lost, "is in manifest.json but not in", True),
        (changed, "another SHA-256", True),
        (of_another_cell, "holds the record of cell", True),
        (no_record, "holds no readable record", True),
        (unlisted, "is not in manifest.json", False),
        (described_otherwise, "otherwise than they do", False),
        (shown_by_nobody, "shown or cited by no page", False),
    ],
)
def test_a_manifest_that_does_not_tell_of_its_archives_is_found_out(
    desk: Desk, damage: Callable[[Path, Path], None], words: str, is_used: bool
) -> None:
    """And what can't be trusted never gets into a table."""
    records = desk.root / "records"
    damage(sorted(records.glob("*.zip"))[0], records / MANIFEST)
    (problem,) = desk.kept.problems()
    assert words in problem
    if is_used:
        with pytest.raises(BadInput, match=words):
            desk.build(runs=False)


@pytest.mark.parametrize("text", ["{", "[]", '{"0": {}}', '{"0": 3}'])
def test_a_manifest_that_can_not_be_read_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BadInput) as caught:
        Kept(tmp_path)
    assert MANIFEST in str(caught.value)
    assert "\n" not in str(caught.value)
