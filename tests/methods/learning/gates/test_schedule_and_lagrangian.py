"""The target rises as it should, and the multipliers make the expected sparsity follow it."""

import pytest
import torch

from prunebench.methods.learning.gates.expected_size import ExpectedSize
from prunebench.methods.learning.gates.gates import GateKinds, GateSet
from prunebench.methods.learning.gates.lagrangian import Lagrangian
from prunebench.methods.learning.gates.schedule import decayed, target_sparsity
from prunebench.models.anatomy import Anatomy
from prunebench.models.tiny import tiny_model


@pytest.mark.parametrize(("ramp", "middle"), [("linear", 0.15), ("cubic", 0.875 * 0.3)])
def test_the_target_starts_at_zero_and_ends_at_the_budget(ramp, middle):
    targets = [target_sparsity(step, 100, 0.3, ramp=ramp) for step in (0, 50, 100, 1000)]
    assert targets == pytest.approx([0, middle, 0.3, 0.3])


def test_without_a_ramp_the_target_is_the_budget_at_once():
    assert target_sparsity(0, 0, 0.3) == 0.3


@pytest.mark.parametrize(("decay", "middle", "end"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)])
def test_learning_rates_decay(decay, middle, end):
    assert [decayed(1.0, step, 10, decay) for step in (0, 5, 10)] == pytest.approx([1, middle, end])


@pytest.fixture(scope="module")
def pressed():
    """Sparsity and multipliers over 500 steps in which nothing but the Lagrangian moves the gates."""
    anatomy = Anatomy.from_model(tiny_model("llama"))
    gates = GateSet(anatomy, GateKinds(), torch.Generator().manual_seed(0))
    gates.clamp()
    size = ExpectedSize(anatomy, "blocks")
    lagrangian = Lagrangian()
    optimizer = torch.optim.AdamW(
        [
            {"params": list(gates.log_alpha.values()), "lr": 0.1},
            {"params": [lagrangian.multipliers], "lr": 0.1, "maximize": True},
        ],
        weight_decay=0.0,
    )
    history = []
    for _ in range(500):
        sparsity = size.sparsity(gates.open_probabilities())
        history.append((sparsity.item(), *lagrangian.multipliers.flatten().tolist()))
        optimizer.zero_grad()
        lagrangian(sparsity, 0.4).backward()
        optimizer.step()
        gates.clamp()
    return torch.tensor(history, dtype=torch.float64)


def test_below_the_target_lambda1_falls_and_sparsity_rises(pressed):
    below = int((pressed[:, 0] > 0.4).nonzero()[0])
    assert below > 10
    assert (pressed[1:below, 1].diff() < 0).all()
    assert (pressed[1:below, 0].diff() > -1e-6).all()


def test_lambda2_never_falls(pressed):
    assert (pressed[:, 2].diff() >= -1e-6).all()


def test_overshoot_drives_lambda1_back_up(pressed):
    over = int(pressed[:, 0].argmax())
    assert pressed[over, 0] > 0.4
    assert pressed[over:, 1].max() > pressed[over, 1]


def test_sparsity_settles_at_the_target(pressed):
    assert float((pressed[-50:, 0] - 0.4).abs().max()) < 0.01


def largest_gap(lambda2_start):
    """How far sparsity strays from a ramp to 0.4 in 150 steps while a loss holds every gate open, each by another force."""
    anatomy = Anatomy.from_model(tiny_model("llama"))
    generator = torch.Generator().manual_seed(0)
    gates = GateSet(anatomy, GateKinds(), generator)
    gates.clamp()
    size, lagrangian = ExpectedSize(anatomy, "blocks"), Lagrangian(lambda2_start=lambda2_start)
    worth = {kind: 2 * torch.rand(value.shape, generator=generator) for kind, value in gates.log_alpha.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": list(gates.log_alpha.values()), "lr": 0.2},
            {"params": [lagrangian.multipliers], "lr": 0.1, "maximize": True},
        ],
        weight_decay=0.0,
    )
    largest = 0.0
    for step in range(200):
        target = target_sparsity(step, 150, 0.4, ramp="linear")
        probabilities = gates.open_probabilities()
        sparsity = size.sparsity(probabilities)
        largest = max(largest, abs(sparsity.item() - target))
        held = -sum((worth[kind] * gates.probabilities()[kind]).sum() for kind in worth)
        optimizer.zero_grad()
        (held + lagrangian(sparsity, target)).backward()
        optimizer.step()
        gates.clamp()
    return largest


def test_a_high_start_of_lambda2_holds_a_short_run_to_its_schedule():
    assert largest_gap(1000.0) < 0.1 < largest_gap(0.0)
