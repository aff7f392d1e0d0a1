"""A page's table is made from kept records; only cells whose settings no record has are run, and their records are kept."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from findings.build import main
from findings.kept import MANIFEST
from prunebench.experiments.load_config import load_config
from prunebench.experiments.plan import plan_grid
from prunebench.methods import registry
from prunebench.methods.pruner import Pruner, PrunerConfig
from prunebench.models.errors import BadInput
from tests.findings.conftest import Desk


def test_a_question_is_answered_and_its_records_are_kept(answered: Desk) -> None:
    page = answered.page
    assert page.startswith("# Which norm?\n")
    assert "Made by `python -m findings.build norms --data DIR`; don't edit." in page
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.endswith("| done |")]
    assert rows == ["| dense", "| magnitude · norm=l1", "| magnitude · norm=l2"]
    assert "Each setting minus `magnitude · norm=l2`" in page
    kept = answered.kept
    assert sorted(kept.of("norms")) == sorted(answered.archives)
    assert kept.problems() == []
    assert {entry.title for entry in kept.entries.values()} == {
        "dense",
        "magnitude, 30% of blocks, seed 0 (norm=l1)",
        "magnitude, 30% of blocks, seed 0 (norm=l2)",
    }


def test_the_page_is_made_again_from_the_records_alone(desk: Desk) -> None:
    page, archives = desk.page, desk.archives
    assert desk.build(runs=False) == 0
    assert desk.page == page
    assert desk.archives == archives


def test_prose_around_the_table_stays(desk: Desk) -> None:
    desk.ask(page="# Mine\n\nBefore.\n<!-- table -->\nold\n<!-- end of table -->\n\nAfter.\n")
    assert desk.build(runs=False) == 0
    assert desk.page.startswith("# Mine\n\nBefore.\n<!-- table -->\nMade by")
    assert desk.page.endswith("<!-- end of table -->\n\nAfter.\n")
    assert "old" not in desk.page


def made_over(desk: Desk, change: Callable[[dict[str, Any]], None]) -> None:
    """Every archive as another version of the program would have written it: another config, another id."""
    records = desk.root / "records"
    listed = json.loads((records / MANIFEST).read_text(encoding="utf-8"))
    for number, cell in enumerate(list(listed)):
        with zipfile.ZipFile(records / f"{cell}.zip") as packed:
            files = {name: packed.read(name) for name in packed.namelist()}
        (records / f"{cell}.zip").unlink()
        record = json.loads(files["record.json"])
        change(record["run"]["config"])
        other = f"{number:016x}"
        record["run"]["cell_id"] = other
        files["record.json"] = json.dumps(record).encode()
        files["record.seal"] = f"{sha256(files['record.json']).hexdigest()}\n".encode()
        with zipfile.ZipFile(records / f"{other}.zip", "w") as packed:
            for name, content in files.items():
                packed.writestr(name, content)
        listed[other] = listed.pop(cell) | {"sha256": sha256((records / f"{other}.zip").read_bytes()).hexdigest()}
    (records / MANIFEST).write_text(json.dumps(listed), encoding="utf-8")


def before_the_format(config: dict[str, Any]) -> None:
    config["format"] = 1


def before_a_setting(config: dict[str, Any]) -> None:
    """`allocation` and the length of calibration samples did not exist yet: they stand at their defaults."""
    config["method_config"].pop("allocation", None)
    if config["calibration"]:
        del config["calibration"]["seq_len"]


@pytest.mark.parametrize("change", [before_the_format, before_a_setting])
@pytest.mark.parametrize("runs", [True, False])
def test_records_of_another_version_answer_todays_cells(desk: Desk, change: Callable[[dict[str, Any]], None], runs: bool) -> None:
    page = desk.page
    made_over(desk, change)
    archives = desk.archives
    assert desk.build(runs=runs) == 0
    assert desk.archives == archives
    assert desk.page == page


def test_a_cell_of_another_setting_is_run_and_kept_beside_the_others(desk: Desk) -> None:
    made_over(desk, before_the_format)
    before = desk.archives
    desk.ask(grid={"method": [{"name": "magnitude", "config": {"norm": norm}} for norm in ("l1", "l2")], "sparsity": [0.3, 0.4]})
    assert desk.build() == 0
    assert {cell: desk.archives[cell] for cell in before} == before
    new = desk.archives.keys() - before.keys()
    assert {(desk.kept.entries[cell].sparsity, desk.kept.entries[cell].questions) for cell in new} == {(0.4, ("norms",))}
    assert len(new) == 2
    assert desk.kept.problems() == []
    assert desk.page.count("| done |") == 5


@pytest.mark.parametrize(
    "changed",
    [
        {"sparsity": [0.31]},
        {"seed": 1},
        {"basis": "total"},
        {"method": [{"name": "magnitude", "config": {"norm": "l1", "members": "all"}}]},
        {"method": ["random"]},
        {"recovery": [{"name": "lora", "config": {"token_budget": 5}}]},
    ],
)
def test_no_record_answers_a_cell_that_differs_in_one_setting(answered: Desk, changed: dict[str, Any], tmp_path: Path) -> None:
    desk = answered.copy(tmp_path)
    desk.ask(grid={"method": [{"name": "magnitude", "config": {"norm": "l1"}}], "dense": False} | changed)
    (cell,) = plan_grid(load_config(desk.question.grids[0]), desk.bench.data)
    assert desk.kept.answering(cell.config) is None


def test_records_answer_cells_of_their_own_data_alone(answered: Desk, tmp_path: Path) -> None:
    other = tmp_path / "data" / "lambada_openai"
    other.mkdir(parents=True)
    (other / "test.jsonl").write_text('{"text": "Another passage."}\n', encoding="utf-8")
    for cell in plan_grid(load_config(answered.question.grids[0]), other.parent):
        assert answered.kept.answering(cell.config) is None
        assert answered.kept.answering(cell.config, as_it_was=True) is not None


def of_an_older_protocol(config: dict[str, Any]) -> None:
    config["protocols"][0]["version"] = "0"


def test_records_of_an_older_protocol_make_the_page_but_answer_no_cell(desk: Desk) -> None:
    page = desk.page
    made_over(desk, of_an_older_protocol)
    before = desk.archives
    assert desk.build(runs=False) == 0
    assert desk.page == page
    assert desk.build() == 0
    assert len(desk.archives) == 2 * len(before)
    assert set(desk.kept.unused()) == before.keys()


def test_a_cell_without_a_record_is_a_row_that_says_so(desk: Desk) -> None:
    desk.ask(grid={"method": [{"name": "magnitude", "config": {"norm": norm}} for norm in ("l1", "l2")], "sparsity": [0.3, 0.4]})
    assert desk.build(runs=False) == 0
    rows = [line for line in desk.page.splitlines() if line.endswith("| skipped |")]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| magnitude · norm=l1", "40 % of blocks"],
        ["| magnitude · norm=l2", "40 % of blocks"],
    ]
    assert "no record is kept; `python -m findings.build norms --data DIR` runs them." in desk.page


@pytest.fixture
def falls_over(monkeypatch: pytest.MonkeyPatch) -> str:
    """A method that fails, for this test alone."""
    monkeypatch.setattr(registry.PRUNERS, "registered", dict(registry.PRUNERS.registered))

    @registry.register("falls_over")
    class FallsOver(Pruner[PrunerConfig]):
        Config = PrunerConfig

        def prune(self, model: Any, budget: Any, data: Any, run: Any) -> Any:
            raise RuntimeError("over it goes")

    return "falls_over"


def test_a_failed_cell_is_a_row_and_is_not_kept(desk: Desk, falls_over: str) -> None:
    before = desk.archives
    desk.ask(grid={"method": [falls_over]}, against=None)
    assert desk.build() == 0
    assert "| failed |" in desk.page
    assert desk.archives == before


def test_a_record_that_no_page_shows_any_more_is_named(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.ask(grid={"method": [{"name": "magnitude", "config": {"norm": "l1"}}]}, against=None)
    assert desk.build() == 0
    (unused,) = desk.kept.unused()
    assert desk.kept.entries[unused].settings == {"norm": "l2"}
    assert f"No page shows {unused}.zip any more" in capsys.readouterr().err
    assert desk.page.count("| done |") == 2


def test_what_is_wrong_with_a_question_is_said_before_anything_runs(desk: Desk) -> None:
    desk.ask(grid={"method": ["random"]}, against="magnitude")
    with pytest.raises(BadInput, match="against = 'magnitude' names no row; the rows are: random"):
        desk.build()
    desk.ask(against=None, page="# No place for a table\n")
    with pytest.raises(BadInput, match="put them where the table belongs"):
        desk.build()
    assert not (desk.bench.folder / "out").exists()


def test_a_grid_that_is_refused_leaves_the_page_as_it_is(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    page = desk.page
    desk.ask(grid={"method": ["magnitude"], "sparsity": [0.999]}, against=None)
    assert desk.build() == 2
    assert "grid.sparsity 0.999" in capsys.readouterr().err
    assert desk.page == page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compresso-rnak", "--no-run"], "Did you mean 'compresso-rank'?"),
        (["../compresso", "--no-run"], "Unknown question"),
        (["oneshot", "--no-run", "--set", "grid.seed=1"], "would make other cells"),
        (["oneshot", "--no-run", "--set", "run"], "KEY=VALUE"),
        (["oneshot", "--data", "/no/such/folder"], "is no folder"),
    ],
)
def test_a_command_line_that_can_not_be_followed_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
