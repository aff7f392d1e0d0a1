"""What the rows of a question's table are called, and what stands under it."""

from __future__ import annotations

from typing import Any

from findings.build import in_todays_words, unmade
from findings.tables import settings_in
from prunebench.experiments.config import GridConfig
from prunebench.experiments.plan import plan_grid
from prunebench.leaderboard.record import Record, StageCost


def records(methods: list[Any], tokens: dict[str, int], **grid: Any) -> list[Record]:
    """A finished record for each cell of a grid; those of a method's setting `norm` trained on so many tokens."""
    config = GridConfig.model_validate({"grid": {"method": methods, "sparsity": [0.2], "dense": False, **grid}, "protocols": ["reading"]})
    made = []
    for cell in plan_grid(config):
        record = in_todays_words(unmade(cell))
        stage = StageCost(name="prune", training_tokens=tokens[cell.config.method_config["norm"]])
        made.append(record.model_copy(update={"run": record.run.model_copy(update={"status": "done", "reason": "", "stages": [stage]})}))
    return made


NORMS = [{"name": "magnitude", "config": {"norm": norm}} for norm in ("l1", "l2")]


def test_settings_that_train_on_other_numbers_of_tokens_are_told_apart() -> None:
    entries = settings_in(records(NORMS, {"l1": 1000, "l2": 0}))
    assert sorted(entry.full_label for entry in entries) == ["magnitude · norm=l1", "magnitude · norm=l2"]
    assert len({entry.track for entry in entries}) == 2


def test_seeds_of_a_setting_are_one_row_and_a_setting_alone_needs_no_name() -> None:
    (entry,) = settings_in(records(NORMS[:1], {"l1": 0}, seed=[0, 1, 2]))
    assert entry.full_label == "magnitude"
    assert [record.run.seed for record in entry.records] == [0, 1, 2]


def test_a_cell_that_was_not_run_is_named_as_if_it_had_been() -> None:
    config = GridConfig.model_validate({"grid": {"method": NORMS, "sparsity": [0.2], "dense": False}, "protocols": ["reading"]})
    made, other = plan_grid(config)
    done = in_todays_words(unmade(made))
    done.run.status = "done"
    entries = settings_in([done, in_todays_words(unmade(other))])
    assert {entry.full_label: entry.status for entry in entries} == {"magnitude · norm=l1": "done", "magnitude · norm=l2": "skipped"}
