"""Every grid of the repository is planned: the demo, the examples, the papers' settings and the findings' grids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.experiments.load_config import load_config
from prunebench.experiments.plan import plan_grid
from prunebench.methods import registry
from prunebench.methods.llm_pruner.counts import paper_counts
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.masks import Masks
from tests.experiments.support import ROOT

GRIDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("configs", "findings")
    for path in (ROOT / folder).rglob("*.yaml")
    if path.name != "question.yaml"
)
PAPERS = [path for path in GRIDS if path.startswith("configs/papers/")]


@pytest.fixture
def quiet_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin of the docs, for this test alone."""
    others = {name: one for name, one in registry.PRUNERS.registered.items() if name != "quiet"}
    monkeypatch.setattr(registry.PRUNERS, "registered", others)
    code = (ROOT / "docs" / "add-a-pruner.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "quiet.py").write_text(code, encoding="utf-8")
    registry.load_plugin(tmp_path / "quiet.py")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.usefixtures("quiet_plugin")
def test_a_shipped_grid_is_planned(grid: str) -> None:
    config = load_config(ROOT / grid)
    cells = [cell.config for cell in plan_grid(config)]
    assert {cell.method for cell in cells} == {choice.name for choice in config.grid.method} | ({"dense"} if config.grid.dense else set())
    assert {cell.sparsity for cell in cells} - {None} >= set(config.grid.sparsity)


def test_no_two_grids_have_one_name() -> None:
    names = [load_config(ROOT / grid).name for grid in GRIDS]
    assert sorted(names) == sorted(set(names))


@pytest.fixture(scope="module")
def llama_7b() -> Anatomy:
    with torch.device("meta"):
        return Anatomy.from_model(LlamaForCausalLM(LlamaConfig(rms_norm_eps=1e-6)))


@pytest.mark.parametrize("grid", PAPERS)
def test_a_papers_sparsity_can_be_met_on_its_model(grid: str, llama_7b: Anatomy) -> None:
    config = load_config(ROOT / grid).grid
    assert {model.name for model in config.model} == {"huggyllama/llama-7b"}
    for sparsity in config.sparsity:
        solve_uniform(llama_7b, Budget(sparsity, config.basis))


@pytest.mark.parametrize(("grid", "kept"), [("llm_pruner", 5_422_977_024), ("llm_pruner_50", 3_350_188_032)])
def test_llm_pruners_own_ratios_meet_the_budgets_of_its_grids(grid: str, kept: int, llama_7b: Anatomy) -> None:
    config = load_config(ROOT / "configs" / "papers" / f"{grid}.yaml")
    common = config.method_config["llm_pruner"]
    layers = list(range(common["protect_first"], 32 - common["protect_last"]))
    fractions = {choice.config["local_fraction"] for choice in config.grid.method if "local_fraction" in choice.config}
    (fraction,) = fractions
    counts = paper_counts(llama_7b, fraction, layers)
    groups, channels = [torch.ones(32, dtype=torch.bool) for _ in range(32)], [torch.ones(11008, dtype=torch.bool) for _ in range(32)]
    for layer, count in counts.items():
        groups[layer][: count.kv_groups] = False
        channels[layer][: count.channels] = False
    params = Masks.of(llama_7b, kv_groups=groups, ffn=channels).count(llama_7b)
    assert params.total == kept
    (sparsity,) = config.grid.sparsity
    Budget(sparsity, config.grid.basis).check(llama_7b.dense_params, params)
