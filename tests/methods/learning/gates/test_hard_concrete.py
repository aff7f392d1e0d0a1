"""Gates have the constants and the distribution of docs/methods/compresso.md, eqs. 3 to 5."""

import math

import pytest
import torch

from prunebench.methods.learning.gates.hard_concrete import HardConcrete, bernoulli_entropy, clamp_log_alpha, initial_log_alpha

GATE = HardConcrete()


@pytest.mark.parametrize(("log_alpha", "chance"), [(math.log(100), 0.99798), (math.log(0.01), 0.04713), (0.0, 0.83183), (-1.598597, 0.5)])
def test_the_chance_to_be_open_is_the_papers(log_alpha, chance):
    assert float(GATE.nonzero_probability(torch.tensor(log_alpha))) == pytest.approx(chance, abs=1e-5)


@pytest.mark.parametrize("log_alpha", [-4.0, -1.598597, 0.0, 2.0])
@pytest.mark.parametrize("temperature", [0.33, 2 / 3, 1.0, 2.0])
def test_draws_are_open_as_often_as_the_formula_says(log_alpha, temperature):
    gate = HardConcrete(temperature)
    draws = gate.sample(torch.full((100_000,), log_alpha), torch.Generator().manual_seed(0))
    expected = float(gate.nonzero_probability(torch.tensor(log_alpha)))
    assert float((draws > 0).float().mean()) == pytest.approx(expected, abs=0.005)
    assert float(draws.min()) >= 0
    assert float(draws.max()) <= 1


def test_gradient_passes_only_where_a_draw_is_not_clamped():
    log_alpha = torch.zeros(2000, requires_grad=True)
    draws = GATE.sample(log_alpha, torch.Generator().manual_seed(0))
    draws.sum().backward()
    inside = (draws > 0) & (draws < 1)
    assert torch.equal(log_alpha.grad != 0, inside)
    assert inside.any()
    assert not inside.all()


def test_draws_depend_on_the_generator_alone():
    draws = [GATE.sample(torch.zeros(50), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_first_clamp_turns_the_start_into_the_limit():
    start = initial_log_alpha(100, torch.Generator().manual_seed(0))
    assert float(start.mean()) == pytest.approx(10, abs=0.01)
    clamp_log_alpha(start)
    assert torch.equal(start, torch.full((100,), math.log(100)))


def test_channels_start_at_their_drop_rate():
    start = initial_log_alpha(10_000, torch.Generator().manual_seed(0), drop_rate=0.01)
    assert float(start.mean()) == pytest.approx(4.595, abs=1e-3)
    assert float(start.std()) == pytest.approx(0.01, rel=0.05)


def test_a_survivor_is_scaled_by_at_most_the_papers_value():
    assert float(GATE.deterministic(torch.tensor(math.log(100)))) == pytest.approx(0.99604, abs=1e-5)


def test_entropy_is_largest_for_a_coin():
    assert float(bernoulli_entropy(torch.tensor([0.5]))) == pytest.approx(math.log(2))
    assert float(bernoulli_entropy(torch.tensor([0.0, 1.0]))) < 1e-4
