"""The record format: written whole or not at all, read with every problem named."""

from __future__ import annotations

import json
import math
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from leaderboard_records import record, suite, task
from pydantic import BaseModel, ValidationError

from prunebench.leaderboard import record as lr
from prunebench.leaderboard.errors import LeaderboardError, RecordWriteError


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    made = record(scores=[suite([task("piqa", [1, 0, 1])])])
    path = lr.write_record(tmp_path, made)
    assert path == lr.record_path(tmp_path, made.run.cell_id)
    assert lr.read_record(path) == made
    assert lr.read_records(tmp_path) == ([made], [])


def test_nan_and_infinity_survive_in_valid_json(tmp_path: Path) -> None:
    made = record(scores=[suite([task("piqa", [1, 0], value=math.nan)])])
    made.metrics.curves["loss"] = [(0, math.inf), (1, 2.0)]
    path = lr.write_record(tmp_path, made)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = lr.read_record(path)
    assert math.isnan(back.metrics.scores[0].tasks[0].value)
    assert back.metrics.curves["loss"][0][1] == math.inf


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        lr.RunBlock.model_validate({"cell_id": "a", "model": "m", "method": "x", "status": "done", "surprise": 1})


def test_results_of_another_room_are_copied_and_nothing_is_lost() -> None:
    class Task(BaseModel):
        task: str = "piqa"
        metric: str = "acc"
        value: float = 0.5
        stderr: float | None = None
        all_metrics: dict[str, tuple[float, float | None]] = {"acc": (0.5, None)}
        n_available: int = 9
        notes: list[str] = []

    class Protocol(BaseModel):
        protocol: str = "p"
        version: int = 2
        tasks: list[Task] = [Task()]
        mean: dict[str, float] | None = {"value": 0.5, "stderr": 0.1}
        seconds: float = 3.0

    copied = lr.ProtocolScore.from_result(Protocol())
    assert copied.version == "2"
    assert copied.mean == lr.Estimate(value=0.5, stderr=0.1)
    assert copied.extra == {"seconds": 3.0}
    assert copied.tasks[0].extra == {"n_available": 9}
    assert lr.EfficiencyScore.from_result({"latency_ms": 3.0, "device": "cpu"}).extra == {"device": "cpu"}


def test_a_failed_write_leaves_the_old_record_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = record()
    path = lr.write_record(tmp_path, old)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordWriteError, match="No space left"):
        lr.write_record(tmp_path, record(reason="new"))
    assert lr.read_record(path) == old
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_a_written_record_is_readable_by_others(tmp_path: Path) -> None:
    mode = stat.S_IMODE(lr.write_record(tmp_path, record()).stat().st_mode)
    assert mode & 0o400
    assert not mode & 0o111


@pytest.mark.parametrize("cell_id", ["../up", "a/b", "..", "a\\b"])
def test_a_cell_id_that_is_no_folder_name_is_refused(tmp_path: Path, cell_id: str) -> None:
    with pytest.raises(RecordWriteError, match="folder name"):
        lr.write_record(tmp_path, record(cell_id=cell_id))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_cells_gives_nothing_and_a_missing_folder_a_sentence(tmp_path: Path) -> None:
    assert lr.read_records(tmp_path) == ([], [])
    with pytest.raises(LeaderboardError, match="does not exist"):
        lr.read_records(tmp_path / "none")


def put_text(out: Path, name: str, text: str | bytes) -> None:
    folder = lr.cell_dir(out, name)
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("{", "unreadable", "not valid JSON"),
        ("", "unreadable", "not valid JSON"),
        (b"\xff\xfe\x00", "unreadable", "not valid JSON"),
        ("[]", "invalid", "list"),
        ('{"schema_version": 99}', "schema", "reads up to 1"),
        ('{"schema_version": "1"}', "schema", "schema version '1'"),
        ("{}", "schema", "None"),
        ('{"schema_version": 0}', "schema", "could not be brought to 1"),
        ('{"schema_version": 1, "run": {"cell_id": "x"}}', "invalid", "run.model"),
        ("[" * 100_000, "unreadable", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_record_is_named_and_the_others_are_read(tmp_path: Path, text: str | bytes, kind: str, said: str) -> None:
    good = record()
    lr.write_record(tmp_path, good)
    put_text(tmp_path, "bad", text)
    records, problems = lr.read_records(tmp_path)
    assert records == [good]
    assert [p.kind for p in problems] == [kind]
    assert said in problems[0].message
    assert "cells/bad/record.json" in problems[0].message


def test_an_older_schema_is_migrated_and_the_reader_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = json.loads(record().model_dump_json())
    old["schema_version"] = 0
    old["run"]["algorithm"] = old["run"].pop("method")

    def rename(data: dict) -> dict:
        run = dict(data["run"])
        run["method"] = run.pop("algorithm")
        return {**data, "run": run}

    monkeypatch.setitem(lr.MIGRATIONS, 0, rename)
    put_text(tmp_path, old["run"]["cell_id"], json.dumps(old))
    records, problems = lr.read_records(tmp_path)
    assert records == [record()]
    assert [p.kind for p in problems] == ["migrated"]


def test_of_two_records_of_one_cell_the_later_is_shown(tmp_path: Path) -> None:
    early = record(finished_at=datetime(2026, 1, 1, tzinfo=UTC), reason="early")
    late = record(finished_at=datetime(2026, 1, 2, tzinfo=UTC), reason="late")
    put_text(tmp_path, "b", early.model_dump_json())
    put_text(tmp_path, "a", late.model_dump_json())
    records, problems = lr.read_records(tmp_path)
    assert [r.run.reason for r in records] == ["late"]
    assert sorted(p.kind for p in problems) == ["duplicate", "misplaced", "misplaced"]


@pytest.mark.parametrize(("again", "said"), [(True, "was run again since"), (False, "has no other record: run it again")])
def test_a_record_that_was_set_aside_is_named_every_time(tmp_path: Path, again: bool, said: str) -> None:
    made = record()
    path = lr.write_record(tmp_path, made)
    aside = path.parent / "set-aside" / "0-record.json"
    aside.parent.mkdir()
    path.rename(aside)
    if again:
        lr.write_record(tmp_path, made)
    for _ in range(2):
        records, problems = lr.read_records(tmp_path)
        assert len(records) == int(again)
        assert [p.kind for p in problems] == ["set aside"]
        assert f"cells/{made.run.cell_id}/set-aside/0-record.json was set aside" in problems[0].message
        assert said in problems[0].message


def test_the_record_module_needs_no_heavy_library() -> None:
    import subprocess
    import sys

    heavy = ("torch", "numpy", "scipy", "matplotlib", "pandas", "jinja2")
    code = f"import sys, prunebench.leaderboard.record; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"
