"""Hardened gates land on the budget, for every family, and change nothing but units near the border."""

import math

import pytest
import torch

from prunebench.methods.learning.gates.expected_size import ExpectedSize
from prunebench.methods.learning.gates.gates import GateKinds, GateSet
from prunebench.methods.learning.gates.hardening import harden, landing_shift
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import BudgetError
from prunebench.models.tiny import FAMILIES, tiny_model


def scattered(anatomy, *, mean=1.0, spread=3.0, seed=0, **kinds):
    gates = GateSet(anatomy, GateKinds(**kinds), torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    for parameter in gates.log_alpha.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * spread + mean)
    gates.clamp()
    return gates


@pytest.mark.parametrize("family", FAMILIES)
def test_the_budget_is_met_wherever_training_ended(family):
    anatomy = Anatomy.from_model(tiny_model(family))
    for budget in (Budget(0.2, "blocks"), Budget(0.5, "blocks"), Budget(0.35, "total")):
        for mean in (-4.0, 0.5, 4.0):
            for kinds in ({}, {"q_heads": True}, {"hidden": False}):
                hardened = harden(scattered(anatomy, mean=mean, **kinds), anatomy, budget, "soft")
                budget.check(anatomy.dense_params, hardened.masks.count(anatomy))


def test_untouched_gates_still_land_on_the_budget():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    gates = GateSet(anatomy, GateKinds(), torch.Generator().manual_seed(0))
    gates.clamp()
    budget = Budget(0.3)
    assert harden(gates, anatomy, budget, "hard").shift < -1
    budget.check(anatomy.dense_params, harden(gates, anatomy, budget, "hard").masks.count(anatomy))


def test_a_run_that_converged_needs_no_shift():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    gates = scattered(anatomy)
    size = ExpectedSize(anatomy, "total")
    assert landing_shift(gates, size, size.expected_params(gates.open_probabilities()).item()) == pytest.approx(0, abs=1e-6)


def test_the_largest_gates_of_a_layer_stay():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    gates = scattered(anatomy)
    hardened = harden(gates, anatomy, Budget(0.4), "soft")
    for scores, mask in zip(gates.split("ffn", gates.log_alpha), hardened.masks.ffn, strict=True):
        assert mask.any()
        assert not mask.all()
        assert float(scores[mask].min()) >= float(scores[~mask].max())


def test_survivors_are_soft_or_one():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    gates = scattered(anatomy)
    soft, hard = (harden(gates, anatomy, Budget(0.4), kind) for kind in ("soft", "hard"))
    assert soft.masks == hard.masks
    assert set(hard.values["hidden"].tolist()) == {0.0, 1.0}
    kept = soft.masks.hidden
    torch.testing.assert_close(soft.values["hidden"][kept], gates.distribution.deterministic(gates.log_alpha["hidden"].detach())[kept])
    assert not soft.values["hidden"][~kept].any()
    assert float(soft.values["hidden"].max()) <= 1 / (1 + math.exp(-4.60517 * 1.2)) + 1e-6


def test_layers_without_gates_stay_whole():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    masks = harden(scattered(anatomy, hidden=False, layers=(1, 2)), anatomy, Budget(0.3, "blocks"), "hard").masks
    assert masks.ffn[0].all()
    assert masks.kv_groups[0].all()
    assert masks.hidden.all()


def test_query_heads_stay_in_equal_numbers():
    anatomy = Anatomy.from_model(tiny_model("llama", num_attention_heads=8, num_key_value_heads=2))
    masks = harden(scattered(anatomy, q_heads=True, mean=0.0), anatomy, Budget(0.5, "blocks"), "hard").masks
    masks.validate(anatomy)
    assert any(int(m.sum()) not in (0, 4, 8) for m in masks.q_heads)


def test_a_budget_that_the_gated_layers_cannot_meet_is_refused():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    with pytest.raises(BudgetError):
        harden(scattered(anatomy, hidden=False, layers=(1,)), anatomy, Budget(0.6, "blocks"), "hard")
