"""From the grid to cells: what makes a new cell, what doesn't, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunebench.experiments.config import GridConfig
from prunebench.experiments.hashing import seed_for
from prunebench.experiments.plan import PlannedCell, plan_grid, select
from prunebench.models.errors import BadInput
from tests.experiments.support import grid_config, save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("plan") / "model")


def plan(model: Path, **changes: Any) -> list[PlannedCell]:
    return plan_grid(GridConfig.model_validate(grid_config(model, **changes)))


def refusal(model: Path, **changes: Any) -> str:
    with pytest.raises(BadInput) as caught:
        plan(model, **changes)
    return str(caught.value)


def test_the_grid_is_the_product_of_its_axes_and_one_dense_cell(model: Path) -> None:
    cells = plan(model, grid={"method": ["random", "magnitude"], "sparsity": [0.2, 0.4], "seed": [0, 1, 2]})
    assert len(cells) == 1 + 2 * 2 * 3
    assert sum(cell.config.is_dense for cell in cells) == 1
    assert len({cell.id for cell in cells}) == len(cells)


def test_the_same_config_gives_the_same_ids(model: Path) -> None:
    assert [cell.id for cell in plan(model)] == [cell.id for cell in plan(model)]


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": {"sparsity": [0.31]}},
        {"grid": {"seed": 7}},
        {"grid": {"basis": "total"}},
        {"grid": {"method": [{"name": "magnitude", "config": {"norm": "l1"}}]}},
        {"method_config": {"magnitude": {"norm": "l1"}}},
        {"calibration": {"num_samples": 5}},
        {"calibration": {"bos": "never"}},
        {"protocols": [{"name": "perplexity_passages", "limit": 2, "sources": ["data-dir"]}]},
        {"evaluation": {"prompt": "Think."}},
        {"evaluation": {"bos": "never"}},
        {"evaluation": {"chat_template": True}},
        {"evaluation": {"chat_template": "short"}},
        {"evaluation": {"chat_template": True, "system": "Be brief."}},
        {"efficiency": {"enabled": True}},
        {"synthetic": True},
    ],
)
def test_a_changed_setting_makes_a_new_cell(model: Path, changes: dict[str, Any]) -> None:
    before, after = plan(model)[1].id, plan(model, **changes)[1].id
    assert before != after


@pytest.mark.parametrize("changes", [{"run": {"executor": "processes", "workers": 4}}, {"name": "other"}, {"description": "x"}])
def test_how_the_run_goes_about_it_is_no_part_of_a_cell(model: Path, changes: dict[str, Any]) -> None:
    assert [c.id for c in plan(model)] == [c.id for c in plan(model, **changes)]


def test_other_weights_in_the_same_folder_make_new_cells(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", seed=0)
    before = plan(folder)[1].id
    save_tiny_model(folder, seed=1)
    assert plan(folder)[1].id != before


def test_excludes_take_cells_away_and_includes_add_them(model: Path) -> None:
    cells = plan(
        model,
        grid={
            "method": ["random", "magnitude"],
            "sparsity": [0.2, 0.4],
            "exclude": [{"method": "random", "sparsity": 0.4}],
            "include": [{"method": "magnitude", "sparsity": 0.6, "seed": 5}],
        },
    )
    titles = [cell.config.title for cell in cells]
    assert titles == ["model dense", "model random 0.20", "model magnitude 0.20", "model magnitude 0.40", "model magnitude 0.60 seed 5"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"method": ["magnitud"]}}, "Did you mean 'magnitude'?"),
        ({"grid": {"method": ["dense"]}}, "grid.dense"),
        ({"grid": {"method": ["random", "random"]}}, "twice"),
        ({"grid": {"exclude": [{"method": "flap"}]}}, "grid.exclude"),
        ({"grid": {"sparsity": []}}, "grid.sparsity is empty"),
        ({"grid": {"recovery": ["lorra"]}}, "Unknown recovery"),
        ({"grid": {"recovery": ["none", "none"]}}, "twice"),
        ({"evaluation": {"prompt": "compresso:trainign"}}, "'training'"),
        ({"evaluation": {"prompt": "file:/nowhere/prompt.txt"}}, "No such file"),
        ({"protocols": []}, "protocols is empty"),
        ({"protocols": ["mmlu_5shots"]}, "Did you mean 'mmlu_5shot'?"),
        ({"protocols": ["mmlu_5shot", "mmlu_5shot"]}, "twice"),
        ({"method_config": {"magnitude": {"nrom": "l1"}}}, "'norm'"),
        ({"method_config": {"flapp": {}}}, "Did you mean 'flap'?"),
        ({"grid": {"model": "embedded:smollm2"}}, "smollm2-135m-instruct"),
        ({"grid": {"model": "smollm2-135m"}}, "embedded:smollm2-135m-instruct"),
        ({"grid": {"model": "/nowhere/at/all"}}, "does not exist"),
        ({"grid": {"model": "missing.gguf"}}, "missing.gguf"),
        ({"grid": {"model": {"name": "some/model", "device": "cuda:99"}}}, "cuda:99"),
    ],
)
def test_what_no_grid_can_mean_is_refused(model: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(model, **changes)


def test_one_method_takes_part_with_several_settings_that_its_titles_tell_apart(model: Path) -> None:
    entries = [{"name": "magnitude", "config": {"norm": norm}} for norm in ("l1", "l2")]
    include = [{"method": "magnitude", "sparsity": 0.6}]
    cells = plan(model, grid={"method": entries, "sparsity": 0.2, "include": include, "dense": False})
    titles = [f"model magnitude {sparsity} (norm={norm})" for sparsity in ("0.20", "0.60") for norm in ("l1", "l2")]
    assert [cell.title for cell in cells] == titles
    assert len({cell.id for cell in cells}) == 4


def test_a_prompt_from_a_file_is_the_text_in_it(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Think.", encoding="utf-8")
    from_file = plan(model, evaluation={"prompt": f"file:{tmp_path / 'prompt.txt'}"})
    assert [c.id for c in from_file] == [c.id for c in plan(model, evaluation={"prompt": "Think."})]
    collaborative = plan(model, evaluation={"prompt": "compresso:training"})[0].config.protocols[0].prompt
    assert collaborative is not None
    assert len(collaborative.split()) > 100


def test_only_picks_by_the_start_of_an_id(model: Path) -> None:
    cells = plan(model)
    assert select(cells, [cells[1].id[:6]]) == [cells[1]]
    with pytest.raises(BadInput, match="no cell"):
        select(cells, ["zzzz"])


def test_seeds_of_different_purposes_differ_and_stay() -> None:
    assert seed_for(0, "calibration") == seed_for(0, "calibration")
    assert len({seed_for(seed, purpose) for seed in range(3) for purpose in ("calibration", "prune", "recover")}) == 9
