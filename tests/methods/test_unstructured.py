"""Wanda and SparseGPT zero the weights that their papers say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunebench.methods.data import PruningData
from prunebench.methods.layerwise import InputGram, InputMoments
from prunebench.methods.pruner import Run
from prunebench.methods.registry import SliceGPT, get_pruner
from prunebench.methods.sparsegpt import SparseGPTConfig, sparsegpt
from prunebench.methods.unstructured import UnstructuredConfig, drop_lowest, drop_two_of_four
from prunebench.methods.wanda import wanda_scores
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import BadInput, BudgetError
from prunebench.models.tiny import random_tokens, tiny_model

TOKENS = random_tokens(6, 20, seed=3)


def prune(name, model, folder, sparsity=0.5, basis="blocks", **config):
    pruner = get_pruner(name)
    run = Run(seed=0, device=torch.device("cpu"), folder=Path(folder))
    return pruner(pruner.Config(**config)).prune(model, Budget(sparsity, basis), PruningData(TOKENS, "random"), run)


def projections(model):
    return [m.weight.detach() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_half_of_the_projection_weights_are_zero_and_masks_are_full(name, tmp_path):
    model = tiny_model("llama")
    head = model.lm_head.weight.detach().clone()
    masks = prune(name, model, tmp_path)
    assert not get_pruner(name).structured
    assert masks.count(Anatomy.from_model(model)) == Anatomy.from_model(tiny_model("llama")).dense_params
    for weight in projections(model):
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(model.lm_head.weight, head)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_two_of_four_has_exactly_two_zeros_in_every_four_inputs(name, tmp_path):
    model = tiny_model("phi3")
    prune(name, model, tmp_path, pattern="2:4")
    for weight in projections(model):
        assert ((weight == 0).view(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_two_of_four_at_another_sparsity_is_refused(name, tmp_path):
    with pytest.raises(BudgetError, match=r"use sparsity 0\.5 with basis 'blocks'"):
        prune(name, tiny_model("llama"), tmp_path, sparsity=0.3, pattern="2:4")
    with pytest.raises(BudgetError, match="more than all weights"):
        prune(name, tiny_model("llama"), tmp_path, sparsity=0.9, basis="total")


def test_wanda_compares_within_rows():
    dropped = drop_lowest(torch.rand(5, 10, generator=torch.Generator().manual_seed(0)), 0.3)
    assert (dropped.sum(1) == 3).all()


def test_equal_scores_still_lose_exactly_the_share():
    assert drop_lowest(torch.zeros(3, 8), 0.5).sum(1).tolist() == [4, 4, 4]
    assert drop_two_of_four(torch.zeros(2, 10)).sum(1).tolist() == [4, 4]


def layer_problem():
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(32, 32, generator=generator)
    inputs = torch.randn(4, 60, 32, generator=generator) @ mixing
    weight = torch.randn(24, 32, generator=generator)
    gram, moments = InputGram(), InputMoments()
    gram.add(inputs)
    moments.add(inputs)
    return weight, inputs.flatten(0, 1), gram, moments


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsegpt_reconstructs_a_layer_better_than_wanda(pattern):
    weight, inputs, gram, moments = layer_problem()
    scores = wanda_scores(weight, moments, 4)
    wanda = weight.masked_fill(drop_two_of_four(scores) if pattern == "2:4" else drop_lowest(scores, 0.5), 0)
    pruned = sparsegpt(weight, gram.gram * (2 / gram.tokens), 0.5, pattern, block_size=128, damping=0.01)
    assert (inputs @ (pruned - weight).T).norm() < (inputs @ (wanda - weight).T).norm()


def test_sparsegpt_with_an_identity_hessian_is_magnitude_pruning():
    weight, *_ = layer_problem()
    pruned = sparsegpt(weight, torch.eye(32).double(), 0.5, "unstructured", block_size=128, damping=0.01)
    expected = weight.masked_fill(drop_lowest(weight.abs().view(1, -1), 0.5).view_as(weight), 0)
    torch.testing.assert_close(pruned, expected)


def test_sparsegpt_in_small_blocks_updates_later_columns():
    weight, inputs, gram, _ = layer_problem()
    hessian = gram.gram * (2 / gram.tokens)
    pruned = sparsegpt(weight, hessian, 0.5, "unstructured", block_size=8, damping=0.01)
    naive = weight.masked_fill(pruned == 0, 0)
    assert (inputs @ (pruned - weight).T).norm() < (inputs @ (naive - weight).T).norm()


def test_dead_inputs_lose_their_weights_and_give_no_nan():
    weight, _, gram, _ = layer_problem()
    hessian = gram.gram.clone()
    hessian[3], hessian[:, 3] = 0, 0
    pruned = sparsegpt(weight, hessian, 0.5, "unstructured", block_size=128, damping=0.01)
    assert torch.isfinite(pruned).all()
    assert not pruned[:, 3].any()


def test_no_zeros_asked_no_change():
    weight, _, gram, _ = layer_problem()
    torch.testing.assert_close(sparsegpt(weight, gram.gram, 0.0, "unstructured", block_size=16, damping=0.01), weight)


def test_configs_refuse_unknown_patterns():
    with pytest.raises(ValueError, match="pattern"):
        UnstructuredConfig(pattern="4:8")
    with pytest.raises(ValueError, match="block_size"):
        SparseGPTConfig(block_size=6)


def test_slicegpt_says_why_it_can_not(tmp_path):
    anatomy = Anatomy.from_model(tiny_model("llama"))
    assert not SliceGPT().supports(anatomy).ok
    with pytest.raises(BadInput, match="shortcut matrices"):
        prune("slicegpt", tiny_model("llama"), tmp_path)
