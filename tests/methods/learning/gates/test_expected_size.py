"""The factorised expectation equals brute force, in both bases, for every family and for LLaMA-7B's shapes."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.methods.learning.gates.expected_size import ExpectedSize, OpenProbabilities
from prunebench.methods.learning.gates.gates import GateKinds, GateSet
from prunebench.methods.learning.gates.hardening import as_masks, round_counts
from prunebench.models.anatomy import Anatomy
from prunebench.models.masks import Masks
from prunebench.models.tiny import FAMILIES, random_masks, tiny_model


@pytest.fixture(scope="module")
def llama_7b():
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000
    )
    with torch.device("meta"):
        return Anatomy.from_model(LlamaForCausalLM(config))


def as_open(masks: Masks) -> OpenProbabilities:
    return OpenProbabilities(
        tuple(m.float() for m in masks.kv_groups),
        tuple(m.float() for m in masks.q_heads),
        tuple(m.float() for m in masks.ffn),
        masks.hidden.float(),
    )


@pytest.mark.parametrize("basis", ["blocks", "total"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sure_gates_count_as_masks_do(family, basis):
    anatomy = Anatomy.from_model(tiny_model(family))
    size = ExpectedSize(anatomy, basis)
    assert float(size.expected_params(OpenProbabilities())) == anatomy.dense_params.of(basis)
    for seed in range(3):
        masks = random_masks(anatomy, seed=seed, hidden=True)
        assert float(size.expected_params(as_open(masks))) == pytest.approx(masks.count(anatomy).of(basis))


def test_the_product_of_sums_equals_the_sum_over_every_weight():
    """Brute force: each weight stays with P(its row's unit) * P(its column's unit)."""
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    draw = torch.Generator().manual_seed(0)

    def chances(*counts):
        return tuple(torch.rand(count, generator=draw, dtype=torch.float64) for count in counts)

    groups, queries, ffn, (hidden,) = chances(2, 2, 2), chances(4, 4, 4), chances(48, 48, 48), chances(32)
    brute = 0.0
    for i, layer in enumerate(model.model.layers):
        head_dim = layer.self_attn.head_dim
        q = (queries[i] * groups[i].repeat_interleave(2)).repeat_interleave(head_dim)
        kv = groups[i].repeat_interleave(head_dim)
        for weight, rows, columns in (
            (layer.self_attn.q_proj.weight, q, hidden),
            (layer.self_attn.k_proj.weight, kv, hidden),
            (layer.self_attn.v_proj.weight, kv, hidden),
            (layer.self_attn.o_proj.weight, hidden, q),
            (layer.mlp.gate_proj.weight, ffn[i], hidden),
            (layer.mlp.up_proj.weight, ffn[i], hidden),
            (layer.mlp.down_proj.weight, hidden, ffn[i]),
        ):
            stays = rows[:, None] * columns[None, :]
            assert stays.shape == weight.shape
            brute += float(stays.sum())
    formula = ExpectedSize(anatomy, "blocks").expected_params(OpenProbabilities(groups, queries, ffn, hidden))
    assert float(formula) == pytest.approx(brute, rel=1e-12)


def test_llama_7b_has_the_papers_block_count(llama_7b):
    assert ExpectedSize(llama_7b, "blocks").dense == 6_476_005_376


def test_llama_7b_starts_almost_dense_and_can_be_closed_almost_wholly(llama_7b):
    gates = GateSet(llama_7b, GateKinds(), torch.Generator().manual_seed(0))
    gates.clamp()
    assert gates.num_gates == 1_024 + 352_256 + 4_096
    size = ExpectedSize(llama_7b, "blocks")
    assert size.sparsity(gates.open_probabilities()).item() == pytest.approx(0.004, abs=2e-4)
    for parameter in gates.log_alpha.values():
        parameter.data.fill_(math.log(0.01))
    assert size.sparsity(gates.open_probabilities()).item() == pytest.approx(1 - 0.04713**2, abs=1e-4)


def test_llama_7b_rounding_realises_what_was_expected(llama_7b):
    """Spec section 16: within half a unit for each vector, and below 1e-3 over all."""
    gates = GateSet(llama_7b, GateKinds(), torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    for parameter in gates.log_alpha.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 3 + 1)
    gates.clamp()
    kept = round_counts(gates, llama_7b, {kind: p.detach() for kind, p in gates.log_alpha.items()})
    for kind in ("kv_groups", "ffn"):
        for mask, chance in zip(gates.split(kind, kept), gates.split(kind, gates.probabilities()), strict=True):
            assert abs(int(mask.sum()) - chance.sum().item()) <= 0.5 + 1e-3
    realised = 1 - as_masks(gates, llama_7b, kept).count(llama_7b).blocks / llama_7b.dense_params.blocks
    expected = ExpectedSize(llama_7b, "blocks").sparsity(gates.open_probabilities()).item()
    assert abs(realised - expected) < 1e-3


def test_layers_without_gates_count_whole():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    gates = GateSet(anatomy, GateKinds(hidden=False, layers=(1,)), torch.Generator().manual_seed(0))
    for parameter in gates.log_alpha.values():
        parameter.data.fill_(-100.0)
    left = ExpectedSize(anatomy, "blocks").expected_params(gates.open_probabilities()).item()
    assert left == pytest.approx(anatomy.dense_params.blocks * 2 / 3, rel=1e-4)
