"""Truncated and hand-edited files: named, set aside, redone; never read as good. The end is as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prunebench.experiments.commands.report import set_aside_changed_records
from tests.experiments.support import Bench, differences


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty])
@pytest.mark.parametrize(
    "name",
    [
        "record.json",
        "masks.safetensors",
        "checkpoint/model.safetensors",
        "checkpoint/config.json",
        "stages/evaluate.json",
        "stages/prune.json",
    ],
)
def test_a_damaged_file_is_set_aside_and_redone(
    copy_of_finished: Bench, finished: Bench, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = copy_of_finished.cell("magnitude")
    damage(cell / name)
    assert copy_of_finished("run") == 0
    assert "set aside" in (said := capsys.readouterr().err) or "kept as set-aside/" in said
    assert list((cell / "set-aside").iterdir())
    assert not differences(copy_of_finished.records(), finished.records())


def test_a_missing_checkpoint_is_made_again(copy_of_finished: Bench, finished: Bench) -> None:
    cell = copy_of_finished.cell("random")
    (cell / "checkpoint" / "model.safetensors").unlink()
    assert copy_of_finished("run") == 0
    assert (cell / "checkpoint" / "model.safetensors").exists()
    assert not differences(copy_of_finished.records(), finished.records())


def test_a_better_score_written_by_hand_never_reaches_the_leaderboard(copy_of_finished: Bench, finished: Bench) -> None:
    path = copy_of_finished.cell("magnitude") / "record.json"
    record = json.loads(path.read_text())
    record["metrics"]["scores"][0]["tasks"][0]["value"] = 1.0
    path.write_text(json.dumps(record))
    said = set_aside_changed_records(copy_of_finished.out)
    assert len(said) == 1
    assert path.parent.name in said[0]
    assert not path.exists()
    assert copy_of_finished("run") == 0
    assert not differences(copy_of_finished.records(), finished.records())


def test_a_stamp_with_other_numbers_is_not_believed(copy_of_finished: Bench, finished: Bench) -> None:
    cell = copy_of_finished.cell("magnitude")
    stamp = json.loads((cell / "stages" / "evaluate.json").read_text())
    stamp["result"]["scores"][0]["tasks"][0]["value"] = 1.0
    (cell / "stages" / "evaluate.json").write_text(json.dumps(stamp))
    (cell / "record.json").unlink()
    assert copy_of_finished("run") == 0
    assert not differences(copy_of_finished.records(), finished.records())


def test_status_says_that_a_record_was_changed(copy_of_finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(copy_of_finished.cell("magnitude") / "record.json")
    assert copy_of_finished("status") == 0
    assert "1 damaged" in capsys.readouterr().out


def test_damaged_checkpoints_are_not_exported(copy_of_finished: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = copy_of_finished.cell("magnitude")
    flip_a_byte(cell / "checkpoint" / "model.safetensors")
    assert copy_of_finished("export", "--only", cell.name, "--to", str(tmp_path / "mine")) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
