"""What `plan` says a grid will take."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from prunebench.experiments.commands.estimate import Estimate, estimate, evaluation_tokens, measure_speed
from prunebench.experiments.config import GridConfig
from prunebench.experiments.load_config import load_config
from prunebench.experiments.plan import plan_grid
from tests.experiments.support import ROOT, grid_config, save_tiny_model


def test_the_speed_of_this_machine_is_measured_in_an_instant() -> None:
    assert 1e8 < measure_speed(1) < 1e14


def test_work_grows_with_documents_and_shrinks_with_sparsity(tmp_path: Path) -> None:
    cells = plan_grid(load_config(ROOT / "configs" / "demo.yaml"))
    more = plan_grid(load_config(ROOT / "configs" / "demo.yaml", ["protocols=[{name: commonsense_llm_pruner, limit: 400}]"]))
    assert evaluation_tokens(more[0].config) > evaluation_tokens(cells[0].config)
    dense, *pruned = (estimate(cell, 1e11) for cell in cells)
    assert dense.params == 134515008
    assert all(one.seconds is not None and dense.seconds is not None and one.params < dense.params for one in pruned)
    assert {cell.config.sparsity: estimate(cell, 1e11).params for cell in cells[1:]}[0.4] == round(0.6 * 134515008)


def test_the_demo_is_planned_to_take_minutes_on_a_core_of_a_laptop() -> None:
    cells = plan_grid(load_config(ROOT / "configs" / "demo.yaml"))
    seconds = sum(estimate(cell, 1.2e11).seconds or 0 for cell in cells)
    assert 60 < seconds < 1200


def test_a_task_without_a_size_is_refused() -> None:
    from prunebench.evaluation.catalogue import TaskDefinition, known_tasks

    told = known_tasks()["piqa"].model_dump(by_alias=True)
    assert TaskDefinition.model_validate(told).size.documents == 1838
    with pytest.raises(ValidationError, match="size"):
        TaskDefinition.model_validate({name: value for name, value in told.items() if name != "size"})


def test_a_model_that_is_not_here_has_an_unknown_cost(tmp_path: Path) -> None:
    config = GridConfig.model_validate(grid_config(Path("some-org/some-model")))
    assert estimate(plan_grid(config)[0], 1e11).seconds is None
    assert estimate(plan_grid(GridConfig.model_validate(grid_config(save_tiny_model(tmp_path / "m"))))[0], 1e11).seconds is not None


def test_training_counts_where_its_length_is_known_and_is_said_where_it_is_not(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "m")

    def cost(method: dict[str, object], recovery: object = "none") -> Estimate:
        grid = {"method": [method], "sparsity": 0.2, "recovery": recovery, "dense": False}
        return estimate(plan_grid(GridConfig.model_validate(grid_config(model, grid=grid)))[0], 1e6)

    plain, short = cost({"name": "random"}), cost({"name": "compresso", "config": {"steps_per_epoch": 1}})
    long = cost({"name": "compresso", "config": {"steps_per_epoch": 10}})
    assert plain.seconds < short.seconds < long.seconds
    assert [plain.is_lower_bound, long.is_lower_bound] == [False, False]
    assert cost({"name": "compresso"}).is_lower_bound
    assert cost({"name": "random"}, {"name": "lora"}).is_lower_bound
    budgeted = cost({"name": "random"}, {"name": "lora", "config": {"token_budget": 100000}})
    assert budgeted.seconds > plain.seconds
    assert not budgeted.is_lower_bound
