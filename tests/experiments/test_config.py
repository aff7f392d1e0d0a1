"""The grid's config: types, overlays, and one sentence for whatever is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prunebench.experiments.commands.arguments import normalised
from prunebench.experiments.load_config import load_config, parse_setting
from prunebench.experiments.plan import plan_grid
from prunebench.models.errors import BadInput
from tests.experiments.support import ROOT


def write(folder: Path, name: str, data: Any) -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def refusal(path: Path | None, *settings: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_config(path, settings)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "a.yaml", ""))
    assert config == load_config(None)
    assert config.grid.model[0].name == "embedded:smollm2-135m-instruct"


def test_a_single_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "a.yaml", {"grid": {"method": "magnitude", "sparsity": 0.2, "seed": 3}}))
    assert config.grid.method[0].name == "magnitude"
    assert config.grid.sparsity == (0.2,)
    assert config.grid.seed == (3,)


def test_an_overlay_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", {"grid": {"method": ["random"], "sparsity": [0.2, 0.4]}, "calibration": {"num_samples": 8}})
    config = load_config(write(tmp_path, "top.yaml", {"extends": "base.yaml", "grid": {"sparsity": [0.5]}}))
    assert config.grid.method[0].name == "random"
    assert config.grid.sparsity == (0.5,)
    assert config.calibration.num_samples == 8


def test_a_setting_of_the_command_line_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", {"calibration": {"num_samples": 8}})
    assert load_config(path, ["calibration.num_samples=16", "grid.seed=[1, 2]"]).calibration.num_samples == 16


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", {"extends": "b.yaml"})
    write(tmp_path, "b.yaml", {"extends": "a.yaml"})
    assert "circle" in refusal(tmp_path / "a.yaml")


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    sentence = refusal(write(tmp_path, "a.yaml", {"grid": {"sparsty": [0.2]}}))
    assert "grid.sparsty" in sentence
    assert "Did you mean 'sparsity'?" in sentence


def test_an_unknown_key_inside_a_list_is_named(tmp_path: Path) -> None:
    sentence = refusal(write(tmp_path, "a.yaml", {"protocols": [{"name": "mmlu_5shot", "limt": 3}]}))
    assert "protocols.0.limt" in sentence
    assert "'limit'" in sentence


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, "much", True, None, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(tmp_path: Path, value: Any) -> None:
    sentence = refusal(write(tmp_path, "a.yaml", {"grid": {"sparsity": [value]}}))
    assert "grid.sparsity.0" in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: [", "not valid YAML"),
        ("grid: {seed: 1, seed: 2}", "given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("- just\n- a list", "expected keys"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") + ": 1", "unknown key"),
        ("grid: " + "[" * 3000 + "]" * 3000, "a.yaml"),
        ("? {a: 1}\n: 2", "plain text"),
    ],
)
def test_text_that_is_no_config_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(write(tmp_path, "a.yaml", text))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.yaml")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "UTF-8" in refusal(tmp_path / "binary.yaml")


@pytest.mark.parametrize("setting", ["grid.seed", "=3", "grid..seed=3", ".=1", ""])
def test_a_setting_that_is_no_key_and_value_is_refused(setting: str) -> None:
    with pytest.raises(BadInput, match="KEY=VALUE"):
        parse_setting(setting)


def test_several_protocols_and_settings_may_follow_one_flag_or_several() -> None:
    together = normalised(["evaluate", "--protocol", "reading", "mmlu_5shot", "--set", "grid.seed=1", "evaluation.seed=2", "--plain"])
    apart = [
        "evaluate",
        "--protocol",
        "reading",
        "--protocol",
        "mmlu_5shot",
        "--set",
        "grid.seed=1",
        "--set",
        "evaluation.seed=2",
        "--plain",
    ]
    assert together == apart == normalised(apart)
    assert normalised(["export", "--to", "a", "--only", "1", "--only", "2"]) == ["export", "--to", "a", "--only", "1", "--only", "2"]


def test_the_grid_in_the_docs_is_planned_as_it_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "grids.md").read_text(encoding="utf-8")
    path = tmp_path / "example.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    cells = [cell.config for cell in plan_grid(load_config(path))]
    # llm_pruner and random with both recoveries, magnitude twice without; 2 sparsities x 2 seeds; dense; the include with both
    assert len(cells) == (2 * 2 + 2) * 2 * 2 + 1 + 2
    assert {cell.method_config.get("norm") for cell in cells if cell.method == "magnitude"} == {"l1", "l2"}


@pytest.mark.parametrize("extends", [[], "", [""], 3, None])
def test_extends_names_at_least_one_file(tmp_path: Path, extends: object) -> None:
    with pytest.raises(BadInput, match="expected a file name or a list of them"):
        load_config(write(tmp_path, "a.yaml", {"extends": extends}))
