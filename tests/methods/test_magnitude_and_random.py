"""The two data-free baselines, against numbers worked by hand."""

from pathlib import Path

import pytest
import torch

from prunebench.methods.data import PruningData
from prunebench.methods.magnitude import Magnitude, MagnitudeConfig, magnitude_scores
from prunebench.methods.pruner import Run
from prunebench.methods.random import Random, RandomConfig
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import BudgetError
from prunebench.models.tiny import tiny_model


def prune(method, model, sparsity=0.3, seed=0, folder=Path("unused")):
    return method.prune(model, Budget(sparsity), PruningData.none(), Run(seed=seed, device=torch.device("cpu"), folder=folder))


@torch.no_grad()
def test_scores_are_sums_of_powers_over_the_members():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    layer = model.model.layers[1]
    l2 = magnitude_scores(model, anatomy, norm="l2", members="output")
    torch.testing.assert_close(l2.ffn[1], layer.mlp.down_proj.weight.square().sum(0))
    torch.testing.assert_close(l2.kv_groups[1][1], layer.self_attn.o_proj.weight[:, 16:].square().sum())
    l1 = magnitude_scores(model, anatomy, norm="l1", members="all")
    gate, up, down = (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight)
    torch.testing.assert_close(l1.ffn[1], (gate.abs().sum(1) + up.abs().sum(1) + down.abs().sum(0)) / 3)
    q, k, v, o = (getattr(layer.self_attn, name).weight for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    by_hand = (q[:16].abs().sum() + k[:8].abs().sum() + v[:8].abs().sum() + o[:, :16].abs().sum()) / 4
    torch.testing.assert_close(l1.kv_groups[1][0], by_hand)


def test_fused_projections_score_like_separate_ones():
    """The same weights, fused (Phi-3) or not (Llama), choose the same units."""
    fused, plain = tiny_model("phi3"), tiny_model("llama")
    with torch.no_grad():
        for source, target in zip(plain.model.layers, fused.model.layers, strict=True):
            attention, mlp = source.self_attn, source.mlp
            target.self_attn.qkv_proj.weight.copy_(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
            target.self_attn.o_proj.weight.copy_(attention.o_proj.weight)
            target.mlp.gate_up_proj.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            target.mlp.down_proj.weight.copy_(mlp.down_proj.weight)
    method = Magnitude(MagnitudeConfig(members="all"))
    assert prune(method, fused) == prune(method, plain)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_unit_of_small_weights_goes_first(allocation):
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 7] *= 1e-3
    masks = prune(Magnitude(MagnitudeConfig(allocation=allocation)), model)
    assert not any(bool(mask[7]) for mask in masks.ffn)


def test_random_depends_on_the_seed_alone():
    model = tiny_model("llama")
    assert prune(Random(), model, seed=1) == prune(Random(), model, seed=1)
    assert prune(Random(), model, seed=1) != prune(Random(), model, seed=2)


@pytest.mark.parametrize(
    "method", [Random(RandomConfig(protect_first=1, protect_last=1)), Magnitude(MagnitudeConfig(protect_first=1, protect_last=1))]
)
def test_protected_layers_stay_whole(method):
    masks = prune(method, tiny_model("llama"), sparsity=0.15)
    assert masks.ffn[0].all()
    assert masks.ffn[2].all()
    assert masks.kv_groups[0].all()
    assert masks.kv_groups[2].all()
    assert not masks.ffn[1].all()


def test_protecting_every_layer_is_refused():
    with pytest.raises(BudgetError, match="leave none of the model's 3 layers"):
        prune(Magnitude(MagnitudeConfig(protect_first=2, protect_last=1)), tiny_model("llama"))
