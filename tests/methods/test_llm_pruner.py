"""LLM-Pruner has the groups, scores and counts of its paper and code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.methods.conformance import check_pruner
from prunebench.methods.data import PruningData
from prunebench.methods.llm_pruner import LLMPruner, LLMPrunerConfig
from prunebench.methods.llm_pruner.counts import paper_counts
from prunebench.methods.llm_pruner.groups import BlockGroups, reduce_members
from prunebench.methods.llm_pruner.taylor import Site, next_token_loss, score_sites
from prunebench.methods.pruner import Run
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import BadInput, BudgetError
from prunebench.models.gating.soft_masks import Gates, apply_gates
from prunebench.models.masks import Masks
from prunebench.models.slice import slice_model
from prunebench.models.tiny import random_tokens, tiny_model

TOKENS = random_tokens(6, 20, seed=3)


def quiet(label, done, total):
    """Progress that nobody watches."""


def run_in(folder, seed=0):
    return Run(seed=seed, device=torch.device("cpu"), folder=Path(folder))


def prune(model, folder, sparsity=0.2, tokens=TOKENS, **config):
    data = PruningData(tokens, "random")
    return LLMPruner(LLMPrunerConfig(**config)).prune(model, Budget(sparsity), data, run_in(folder))


def scores(model, importance, tokens=TOKENS, batch_size=10, reduction="sum", layers=None):
    anatomy = Anatomy.from_model(model)
    groups = BlockGroups.of(anatomy, list(range(len(anatomy.layers))) if layers is None else layers)
    score_sites(model, groups.sites, tokens, importance, batch_size=batch_size, progress=quiet)
    return groups, groups.scores(anatomy, reduction)


def gradients(model, tokens=TOKENS):
    model.zero_grad()
    next_token_loss(model, tokens).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


# --- counts ------------------------------------------------------------------------------------------------------------


def meta_llama(**config):
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**config))


@pytest.fixture(scope="module")
def llama_7b():
    return Anatomy.from_model(
        meta_llama(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    )


def masks_of(anatomy, counts):
    def keep(size, removed):
        return torch.arange(size) >= removed

    sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
    return Masks.of(
        anatomy,
        kv_groups=[keep(g, counts[i].kv_groups if i in counts else 0) for i, (_, g, _) in enumerate(sizes)],
        ffn=[keep(c, counts[i].channels if i in counts else 0) for i, (_, _, c) in enumerate(sizes)],
    )


def test_rounding_of_the_official_code(llama_7b):
    assert {(c.kv_groups, c.channels) for c in paper_counts(llama_7b, 0.25, [5]).values()} == {(8, 2752)}
    assert {(c.kv_groups, c.channels) for c in paper_counts(llama_7b, 0.6, [5]).values()} == {(19, 6605)}


@pytest.mark.parametrize(("layers", "fraction", "total"), [(range(4, 30), 0.25, 5_422_977_024), (range(3, 31), 0.6, 3_350_188_032)])
def test_llama_7b_parameter_counts_of_the_papers_rows(llama_7b, layers, fraction, total):
    assert llama_7b.dense_params.total == 6_738_415_616
    assert masks_of(llama_7b, paper_counts(llama_7b, fraction, list(layers))).count(llama_7b).total == total


def test_llama_3_8b_parameter_count():
    anatomy = Anatomy.from_model(
        meta_llama(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=False,
        )
    )
    assert anatomy.dense_params.total == 8_030_261_248
    assert masks_of(anatomy, paper_counts(anatomy, 0.25, list(range(4, 30)))).count(anatomy).total == 6_612_586_496


def test_tinyllama_keeps_the_published_share():
    anatomy = Anatomy.from_model(
        meta_llama(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            tie_word_embeddings=False,
        )
    )
    kept = masks_of(anatomy, paper_counts(anatomy, 0.25, list(range(4, 18)))).count(anatomy).total
    assert 100 * kept / anatomy.dense_params.total == pytest.approx(85.9878, abs=5e-5)


def test_a_ratio_that_leaves_nothing_is_refused(llama_7b):
    with pytest.raises(BadInput, match="at least one of each must stay"):
        paper_counts(llama_7b, 0.9999, [4])
    with pytest.raises(BudgetError):
        Budget(1.0)


# --- dependency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kv_group", "channel", "hidden"])
def test_zeroing_the_members_of_a_group_equals_slicing_it_out(kind):
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    masks = {
        "kv_group": Masks.of(anatomy, kv_groups=[torch.tensor([True, i != 1]) for i in range(3)]),
        "channel": Masks.of(anatomy, ffn=[torch.arange(48) != 7 for _ in range(3)]),
        "hidden": Masks.of(anatomy, hidden=torch.arange(32) != 5),
    }[kind]
    sliced = slice_model(model, masks)
    with torch.no_grad():
        decoder = model.model
        if kind == "kv_group":
            attention = decoder.layers[1].self_attn
            attention.q_proj.weight[16:] = attention.k_proj.weight[8:] = attention.v_proj.weight[8:] = 0
            attention.o_proj.weight[:, 16:] = 0
        elif kind == "channel":
            for layer in decoder.layers:
                layer.mlp.gate_proj.weight[7] = layer.mlp.up_proj.weight[7] = 0
                layer.mlp.down_proj.weight[:, 7] = 0
        else:
            decoder.embed_tokens.weight[:, 5] = 0
            for layer in decoder.layers:
                layer.self_attn.o_proj.weight[5] = layer.mlp.down_proj.weight[5] = 0
        torch.testing.assert_close(sliced(TOKENS).logits, model(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_nothing_removed_changes_no_bit():
    model = tiny_model("llama")
    with torch.no_grad():
        assert torch.equal(slice_model(model, Masks.of(Anatomy.from_model(model)))(TOKENS).logits, model(TOKENS).logits)


# --- scores --------------------------------------------------------------------------------------------------------------


def test_vector_score_of_a_channel_is_the_derivative_by_a_scale_on_one_member():
    model = tiny_model("llama")
    groups, _ = scores(model, "vector")
    down = groups.mlp[1].sites[2].score
    anatomy, gate = Anatomy.from_model(model), torch.ones(48, requires_grad=True)
    with apply_gates(model, anatomy, Gates(ffn=[torch.ones(48), gate, torch.ones(48)])):
        next_token_loss(model, TOKENS).backward()
    torch.testing.assert_close(down, gate.grad.abs().double(), atol=1e-6, rtol=1e-4)


def test_scores_equal_their_formulas_on_whole_gradients():
    model = tiny_model("llama")
    grads = gradients(model)
    per_sample = [gradients(model, sample) for sample in TOKENS.split(1)]
    name = "model.layers.1.mlp.up_proj.weight"
    weight = model.get_parameter(name).detach()
    fisher = torch.stack([g[name].square() for g in per_sample]).mean(0)
    expected = {
        "vector": (weight * grads[name]).sum(1).abs(),
        "first": (weight * grads[name]).abs().sum(1),
        "second": (weight.square() * fisher).sum(1),
        "mix": (weight * grads[name] - 0.5 * weight.square() * fisher).abs().sum(1),
    }
    for importance, formula in expected.items():
        groups, _ = scores(model, importance)
        torch.testing.assert_close(groups.mlp[1].sites[1].score, formula.double(), atol=1e-7, rtol=1e-4)


def test_first_order_element_score_is_never_below_the_vector_score():
    model = tiny_model("qwen2")
    (vector, _), (element, _) = scores(model, "vector"), scores(model, "first")
    for low, high in zip(vector.sites, element.sites, strict=True):
        assert (high.score >= low.score - 1e-9).all()


def test_vector_and_second_scores_do_not_depend_on_the_batch_size():
    model = tiny_model("llama")
    for importance in ("vector", "second"):
        _, whole = scores(model, importance)
        _, split = scores(model, importance, batch_size=4)
        torch.testing.assert_close(split.ffn[0], whole.ffn[0], atol=1e-7, rtol=1e-3)


def test_with_one_sample_the_mix_score_is_that_of_its_squared_gradient():
    model = tiny_model("llama")
    name = "model.layers.0.mlp.gate_proj.weight"
    product = model.get_parameter(name).detach() * gradients(model, TOKENS[:1])[name]
    groups, _ = scores(model, "mix", TOKENS[:1])
    torch.testing.assert_close(groups.mlp[0].sites[0].score, (product - 0.5 * product.square()).abs().sum(1).double(), atol=1e-7, rtol=1e-4)


def test_the_mix_score_of_a_single_matrix_needs_no_other():
    model = tiny_model("llama")
    name = "model.layers.0.mlp.gate_proj.weight"
    alone = Site(name, 0, model.get_parameter(name).shape[0], "rows")
    score_sites(model, [alone], TOKENS, "mix", batch_size=len(TOKENS), progress=quiet)
    groups, _ = scores(model, "mix")
    torch.testing.assert_close(alone.score, groups.mlp[0].sites[0].score, atol=0, rtol=0)


def test_fused_projections_score_like_separate_ones():
    groups, _ = scores(tiny_model("phi3"), "first")
    assert {site.parameter for site in groups.attention[0].sites[:3]} == {"model.layers.0.self_attn.qkv_proj.weight"}
    grads, model = gradients(tiny_model("phi3")), tiny_model("phi3")
    product = (
        model.get_parameter("model.layers.0.self_attn.qkv_proj.weight").detach() * grads["model.layers.0.self_attn.qkv_proj.weight"]
    ).abs()
    torch.testing.assert_close(groups.attention[0].sites[2].score, product[48:].sum(1).double(), atol=1e-7, rtol=1e-4)


def test_reductions_order_differently_but_remove_as_many(tmp_path):
    random = torch.rand(4, 50, generator=torch.Generator().manual_seed(1))
    orders = {
        reduction: tuple(reduce_members(random, reduction).argsort().tolist()) for reduction in ("sum", "max", "prod", "first", "last")
    }
    assert len(set(orders.values())) == 5
    kept = {r: prune(tiny_model("llama"), tmp_path, reduction=r) for r in ("sum", "mean", "max", "prod", "first", "last")}
    assert len({tuple(int(m.sum()) for m in masks.ffn) for masks in kept.values()}) == 1


# --- grouped queries -------------------------------------------------------------------------------------------------------


def permuted(order):
    """The tiny model with its query heads in another order (rows of q, columns of o); 4 heads in 2 groups."""
    model = tiny_model("llama")
    rows = (torch.tensor(order)[:, None] * 8 + torch.arange(8)).flatten()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.q_proj.weight[rows].clone())
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight[:, rows].clone())
    return model


@pytest.mark.parametrize("reduction", ["sum", "max", "prod"])
def test_permuting_query_heads_within_a_group_leaves_scores_alone_and_across_groups_does_not(reduction):
    original, within, across = (
        scores(permuted(order), "first", reduction=reduction)[1] for order in ([0, 1, 2, 3], [1, 0, 3, 2], [0, 2, 1, 3])
    )
    torch.testing.assert_close(within.kv_groups[1], original.kv_groups[1], rtol=1e-3, atol=0)
    assert not torch.allclose(across.kv_groups[1], original.kv_groups[1], rtol=1e-2, atol=0)


def test_a_group_takes_the_scores_of_its_contiguous_query_heads():
    model = tiny_model("llama")
    groups, _ = scores(model, "first")
    members = groups.attention[0]
    members.sites[0].score.copy_(torch.tensor([0.0, 0.0, 1.0, 2.0]).repeat_interleave(8))
    assert members.scores("first").tolist() == [0.0, 24.0]


def test_a_removed_group_takes_exactly_its_query_heads(tmp_path):
    masks = prune(tiny_model("llama"), tmp_path, sparsity=0.4)
    for groups, heads in zip(masks.kv_groups, masks.q_heads, strict=True):
        assert torch.equal(heads, groups.repeat_interleave(2))


# --- the method ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize(
    "config",
    [
        {"importance": "vector"},
        {"importance": "second"},
        {"importance": "mix"},
        {"allocation": "global"},
        {"iterative_steps": 3},
        {"batch_size": 3},
    ],
    ids=str,
)
def test_every_variant_keeps_the_promises(config, family):
    assert [f for f in check_pruner(LLMPruner, LLMPrunerConfig(**config), families=(family,)) if f.status != "kept"] == []


def test_the_dense_model_is_left_bit_for_bit(tmp_path):
    model, twin = tiny_model("llama"), tiny_model("llama")
    flags = [p.requires_grad for p in model.parameters()]
    prune(model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_protected_layers_stay_whole(tmp_path):
    masks = prune(tiny_model("llama"), tmp_path, sparsity=0.1, protect_first=1, protect_last=1)
    assert masks.ffn[0].all()
    assert masks.ffn[2].all()
    assert not masks.ffn[1].all()


def test_iterative_steps_never_bring_a_unit_back(tmp_path):
    half = prune(tiny_model("llama"), tmp_path, sparsity=0.2)
    whole = prune(tiny_model("llama"), tmp_path, sparsity=0.4, iterative_steps=2)
    for early, late in zip(half.ffn, whole.ffn, strict=True):
        assert not (late & ~early).any()


def test_the_papers_own_ratio_is_kept_when_asked_for(tmp_path):
    masks = prune(tiny_model("llama"), tmp_path, local_fraction=0.5)
    assert {int(m.sum()) for m in masks.ffn} == {24}
    assert {int(m.sum()) for m in masks.kv_groups} == {1}


@pytest.mark.parametrize("importance", ["vector", "first", "second"])
def test_channel_wise_removes_residual_dimensions(tmp_path, importance):
    model = tiny_model("llama", hidden_size=256)
    masks = prune(model, tmp_path, strategy="channel", importance=importance)
    assert not masks.hidden.all()
    assert all(mask.all() for mask in masks.ffn)
    sliced = slice_model(model, masks)
    assert sliced.config.hidden_size == int(masks.hidden.sum())


def test_channel_wise_says_when_the_width_is_too_coarse(tmp_path):
    with pytest.raises(BudgetError, match="can't be cut finely enough"):
        prune(tiny_model("llama"), tmp_path, sparsity=0.234, strategy="channel")


def test_layer_wise_truncates_and_trims_one_layer_to_the_budget(tmp_path):
    masks = prune(tiny_model("llama"), tmp_path, sparsity=0.4, strategy="layer")
    assert masks.attn.tolist() == [True, False, False]  # 40 % is more than one layer and the channels of the next
    assert masks.ffn[0].all()
    assert masks.mlp.tolist() == [True, True, False]
    assert not masks.ffn[1].all()


def test_bfloat16_scores_are_those_of_float32_gradients(tmp_path):
    low, high = tiny_model("llama").bfloat16(), tiny_model("llama")
    _, expected = scores(high, "second")
    _, found = scores(low, "second")
    assert (found.ffn[0] > 0).all()
    assert torch.corrcoef(torch.stack([found.ffn[0].log(), expected.ffn[0].log()]))[0, 1] > 0.9


def test_tiny_gradients_of_a_bfloat16_model_do_not_underflow_when_squared():
    model = tiny_model("llama").bfloat16()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-18)  # squared, these gradients are near 1e-36
    site = Site("model.layers.0.mlp.up_proj.weight", 0, 48, "rows")
    score_sites(model, [site], TOKENS, "second", batch_size=10, progress=quiet)
    assert (site.score > 0).any()


def test_a_loss_that_is_not_a_number_stops_with_its_batch(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="calibration batch 1 is nan"):
        prune(model, tmp_path)


def test_no_calibration_text_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="llm_pruner needs calibration text"):
        LLMPruner().prune(tiny_model("llama"), Budget(0.2), PruningData.none(), run_in(tmp_path))


def test_one_kv_group_stays_where_a_layer_has_only_one(tmp_path):
    masks = prune(tiny_model("llama_mqa"), tmp_path, sparsity=0.3)
    assert all(bool(mask.all()) for mask in masks.kv_groups)


def test_same_seed_same_units(tmp_path):
    assert prune(tiny_model("qwen3"), tmp_path) == prune(tiny_model("qwen3"), tmp_path)
