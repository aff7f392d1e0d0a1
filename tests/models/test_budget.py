"""Budgets: ranges, counts that meet them, and what is impossible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.methods.allocation import UnitScores, allocate
from prunebench.models.anatomy import Anatomy, ParamCount
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.errors import BudgetError
from prunebench.models.tiny import FAMILIES, tiny_model

ANATOMIES = {family: Anatomy.from_model(tiny_model(family)) for family in FAMILIES}


def scores_for(anatomy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
    return UnitScores(
        tuple(torch.rand(groups, generator=generator) for _, groups, _ in sizes),
        tuple(torch.rand(channels, generator=generator) for _, _, channels in sizes),
    )


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_sparsity_outside_zero_and_one_is_refused(sparsity):
    with pytest.raises(BudgetError, match="between 0 and 1"):
        Budget(sparsity)


def test_unknown_basis_is_refused():
    with pytest.raises(BudgetError, match="use 'total' or 'blocks'"):
        Budget(0.2, "everything")  # type: ignore[arg-type]


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    sparsity=st.floats(0.05, 0.4),
    basis=st.sampled_from(["total", "blocks"]),
    allocation=st.sampled_from(["uniform", "global"]),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_allocation_lands_within_half_a_percent(family, sparsity, basis, allocation, seed):
    anatomy = ANATOMIES[family]
    budget = Budget(sparsity, basis)
    masks = allocate(anatomy, budget, scores_for(anatomy, seed), allocation=allocation)
    budget.check(anatomy.dense_params, masks.count(anatomy))


def test_large_models_land_within_one_channel():
    with torch.device("meta"):
        anatomy = Anatomy.from_model(LlamaForCausalLM(LlamaConfig()))
    for sparsity in (0.1, 0.2, 0.35, 0.5):
        counts = solve_uniform(anatomy, Budget(sparsity), range(4, 30))
        removed = sum(c.kv_groups * anatomy.kv_group_params(i) + c.channels * anatomy.channel_params(i) for i, c in counts.items())
        assert abs(removed - Budget(sparsity).params_to_remove(anatomy)) <= anatomy.channel_params(4) / 2
        assert len({c.kv_groups for c in counts.values()}) == 1
        assert max(c.channels for c in counts.values()) - min(c.channels for c in counts.values()) <= 1


def test_uniform_removes_the_lowest_scored_units():
    anatomy = ANATOMIES["llama"]
    scores = UnitScores(tuple(torch.tensor([2.0, 1.0]) for _ in range(3)), tuple(torch.arange(48.0) for _ in range(3)))
    masks = allocate(anatomy, Budget(0.4, "blocks"), scores)
    for channels in masks.ffn:
        gone = int((~channels).sum())
        assert gone > 0
        assert not channels[:gone].any()
        assert channels[gone:].all()


def test_global_takes_from_the_layer_with_the_lowest_scores():
    anatomy = ANATOMIES["llama"]
    channels = (torch.full((48,), 5.0), torch.arange(48.0) / 100, torch.full((48,), 5.0))
    masks = allocate(
        anatomy, Budget(0.1, "blocks"), UnitScores(tuple(torch.full((2,), 1e6) for _ in range(3)), channels), allocation="global"
    )
    assert masks.ffn[0].all()
    assert masks.ffn[2].all()
    assert 0 < int(masks.ffn[1].sum()) < 48


def test_equal_scores_remove_an_exact_number():
    anatomy = ANATOMIES["llama"]
    flat = UnitScores(tuple(torch.zeros(2) for _ in range(3)), tuple(torch.zeros(48) for _ in range(3)))
    for allocation in ("uniform", "global"):
        masks = allocate(anatomy, Budget(0.3), flat, allocation=allocation)
        Budget(0.3).check(anatomy.dense_params, masks.count(anatomy))


def test_an_impossible_sparsity_says_what_is_possible():
    with pytest.raises(BudgetError, match=r"sparsity 0.95 \(total\) is impossible.*at most 0\.\d+"):
        solve_uniform(ANATOMIES["llama"], Budget(0.95))
    with pytest.raises(BudgetError, match="sparsity"):
        allocate(ANATOMIES["llama"], Budget(0.95), scores_for(ANATOMIES["llama"]), allocation="global")


def test_a_missed_budget_says_both_numbers():
    with pytest.raises(BudgetError, match=r"sparsity 0\.2000 \(total\), but 0\.1000 was achieved"):
        Budget(0.2).check(ParamCount(1000, 800), ParamCount(900, 700))
    Budget(0.2).check(ParamCount(1000, 800), ParamCount(804, 700))
