"""Wanda-sp, FLAP and block influence score as their papers say and keep what all methods promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunebench.methods.allocation import UnitScores, allocate
from prunebench.methods.block_influence import BlockInfluence, BlockInfluenceConfig
from prunebench.methods.conformance import check_pruner
from prunebench.methods.data import PruningData
from prunebench.methods.flap import Flap, FlapConfig, column_metric, compensate, flap_scores, standardised
from prunebench.methods.layerwise import InputMoments, run_decoder, watched_inputs
from prunebench.methods.magnitude import magnitude_scores
from prunebench.methods.pruner import Run
from prunebench.methods.registry import get_pruner
from prunebench.methods.wanda_sp import WandaSp, WandaSpConfig, column_scores
from prunebench.models.anatomy import Anatomy, count_params
from prunebench.models.budget import Budget
from prunebench.models.errors import BadInput
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.masks import Masks
from prunebench.models.slice import slice_model
from prunebench.models.tiny import random_tokens, tiny_model

TOKENS = random_tokens(6, 20, seed=3)


def quiet(label, done, total):
    """Progress that nobody watches."""


def prune(pruner, model, folder, sparsity=0.2, basis="blocks", tokens=TOKENS):
    run = Run(seed=0, device=torch.device("cpu"), folder=Path(folder))
    return pruner.prune(model, Budget(sparsity, basis), PruningData(tokens, "random"), run)


def output_paths(model):
    anatomy = Anatomy.from_model(model)
    return [path for layer in anatomy.layers for path in (layer.attention.o, layer.mlp.down)]


def moments_of(model, tokens=TOKENS):
    with watched_inputs(model, output_paths(model), InputMoments) as moments:
        run_decoder(model, [tokens], progress=quiet, label="")
    return moments


@pytest.mark.parametrize("name", ["wanda_sp", "flap", "block_influence"])
def test_no_calibration_text_is_refused_in_one_sentence(name, tmp_path):
    run = Run(seed=0, device=torch.device("cpu"), folder=tmp_path)
    with pytest.raises(BadInput, match=f"{name} needs calibration text"):
        get_pruner(name)().prune(tiny_model("llama"), Budget(0.2), PruningData.none(), run)


@pytest.mark.parametrize("name", ["wanda_sp", "flap", "block_influence"])
def test_batches_do_not_change_what_is_chosen(name, tmp_path):
    pruner = get_pruner(name)
    chosen = [prune(pruner(pruner.Config(batch_size=size)), tiny_model("llama"), tmp_path) for size in (1, 4, 100)]
    assert chosen[0] == chosen[1] == chosen[2]


# --- Wanda-sp ------------------------------------------------------------------------------------------------------------


def test_wanda_sp_score_is_mean_weight_times_root_mean_square_of_token_norms():
    inputs = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))  # (samples, tokens, in)
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    moments = InputMoments()
    moments.add(inputs)
    norms = inputs.square().sum(1).mean(0).sqrt()
    torch.testing.assert_close(column_scores(weight, moments, 3).float(), weight.abs().mean(0) * norms)


def test_wanda_sp_with_constant_activations_ranks_by_mean_absolute_weight():
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    moments = InputMoments()
    moments.add(torch.full((2, 6, 8), 3.0))
    assert torch.equal(column_scores(weight, moments, 2).argsort(), weight.abs().mean(0).argsort())


def test_wanda_sp_removes_equally_from_every_layer(tmp_path):
    masks = prune(WandaSp(), tiny_model("llama"), tmp_path, sparsity=0.35)
    assert len({int(mask.sum()) for mask in masks.kv_groups}) == 1
    widths = [int(mask.sum()) for mask in masks.ffn]
    assert max(widths) - min(widths) <= 1


def test_wanda_sp_scores_a_layer_with_inputs_from_pruned_layers(tmp_path):
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    masks = prune(WandaSp(), tiny_model("llama"), tmp_path, sparsity=0.35)
    before = Masks.of(
        anatomy, kv_groups=[*masks.kv_groups[:2], torch.ones(2, dtype=torch.bool)], ffn=[*masks.ffn[:2], torch.ones(48, dtype=torch.bool)]
    )
    with apply_masks(model, anatomy, before):
        moments = moments_of(model)
    down = anatomy.layers[2].mlp.down
    scores = column_scores(model.get_submodule(down).weight, moments[down], len(TOKENS))
    removed = int((~masks.ffn[2]).sum())
    assert set((~masks.ffn[2]).nonzero().flatten().tolist()) == set(scores.argsort()[:removed].tolist())


def test_wanda_sp_leaves_protected_layers_whole(tmp_path):
    masks = prune(WandaSp(WandaSpConfig(protect_first=1)), tiny_model("llama"), tmp_path)
    assert masks.ffn[0].all()
    assert not masks.ffn[1].all()


def test_magnitude_does_not_look_at_calibration_data(tmp_path):
    first, second = (prune(get_pruner("magnitude")(), tiny_model("llama"), tmp_path, tokens=random_tokens(seed=s)) for s in (1, 2))
    assert first == second


# --- FLAP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "olmo2", "llama_bias", "llama_mqa"])
@pytest.mark.parametrize("config", [{"structure": "UL-UM"}, {"metric": "IFV"}, {"metric": "WIFN"}, {"compensate": False}], ids=str)
def test_every_variant_of_flap_keeps_the_promises(config, family):
    assert [f for f in check_pruner(Flap, FlapConfig(**config), families=(family,)) if f.status != "kept"] == []


@pytest.mark.parametrize("family", ["llama", "llama_bias", "gemma2"])
def test_flap_bias_keeps_the_mean_output_of_each_projection_with_dense_inputs(family, tmp_path):
    model = tiny_model(family)
    anatomy, moments = Anatomy.from_model(model), moments_of(model)
    masks = prune(Flap(FlapConfig(compensate=False)), model, tmp_path, sparsity=0.4)
    dense = {path: model.get_submodule(path)(moments[path].mean.float()).detach() for path in output_paths(model)}
    compensate(model, anatomy, masks, moments)
    for layer in anatomy.layers:
        kept = {
            layer.attention.o: masks.q_heads[layer.index].repeat_interleave(layer.attention.head_dim),
            layer.mlp.down: masks.ffn[layer.index],
        }
        for path, mask in kept.items():
            pruned = model.get_submodule(path)(moments[path].mean.float() * mask)
            torch.testing.assert_close(pruned, dense[path], atol=1e-4, rtol=1e-4)


def test_flap_masked_and_sliced_logits_agree_with_biases(tmp_path):
    model = tiny_model("llama")
    masks = prune(Flap(), model, tmp_path, sparsity=0.35)
    anatomy = Anatomy.from_model(model)
    with torch.no_grad(), apply_masks(model, anatomy, masks):
        masked = model(TOKENS).logits
    sliced = slice_model(model, masks)
    torch.testing.assert_close(sliced(TOKENS).logits, masked, atol=1e-5, rtol=1e-5)
    assert sliced.model.layers[0].mlp.down_proj.bias is not None
    assert count_params(sliced) == masks.count(anatomy)


def test_flap_counts_its_biases_against_the_budget(tmp_path):
    model = tiny_model("llama", intermediate_size=480)
    dense = Anatomy.from_model(model).dense_params
    masks = prune(Flap(), model, tmp_path, sparsity=0.3)
    kept = masks.count(Anatomy.from_model(model))
    assert abs(kept.blocks - 0.7 * dense.blocks) <= 3 * 32 / 2 + 1  # half a channel


def test_with_identity_variance_wifv_is_the_squared_column_norm():
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    moments = InputMoments()
    moments.tokens, moments.mean, moments.deviations = 1, torch.zeros(8).double(), torch.ones(8).double()
    torch.testing.assert_close(column_metric(weight, moments, "WIFV").float(), weight.square().sum(0))


def test_standardised_scores_have_mean_zero_and_spread_one():
    scores = standardised(torch.rand(50, generator=torch.Generator().manual_seed(0)).double() * 9)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-12)
    assert float(scores.std()) == pytest.approx(1)


def test_channels_of_no_variance_score_equally_and_are_no_error():
    assert standardised(torch.full((6,), 2.0)).tolist() == [0] * 6
    assert standardised(torch.ones(1)).tolist() == [0]


def test_flap_prunes_a_layer_whose_inputs_never_vary(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()  # the down projection sees zeros only
    masks = prune(Flap(), model, tmp_path, sparsity=0.3)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert masks.ffn[1].any()


def test_flap_global_search_varies_between_layers_and_uniform_does_not(tmp_path):
    def widths(structure):
        model = tiny_model("llama", intermediate_size=96)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[:, :40] *= 0.01
        return [int(mask.sum()) for mask in prune(Flap(FlapConfig(structure=structure)), model, tmp_path, sparsity=0.3).ffn]

    assert len(set(widths("AL-AM"))) > 1
    assert max(widths("UL-UM")) - min(widths("UL-UM")) <= 1


def test_flap_global_search_keeps_the_highest_standardised_scores(tmp_path):
    model = tiny_model("llama", intermediate_size=96)
    anatomy = Anatomy.from_model(model)
    scores = flap_scores(model, anatomy, moments_of(model), "WIFV")
    masks = prune(Flap(FlapConfig(compensate=False)), model, tmp_path, sparsity=0.3)
    kept = torch.cat([score[mask] for score, mask in zip(scores.ffn, masks.ffn, strict=True)])
    gone = torch.cat([score[~mask] for score, mask in zip(scores.ffn, masks.ffn, strict=True)])
    assert gone.max() <= kept.min() + 1e-9


def test_ranking_by_score_ignores_the_size_of_a_unit():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    scores = UnitScores(tuple(torch.tensor([1.0, 9.0]) for _ in range(3)), tuple(torch.linspace(2, 3, 48) for _ in range(3)))
    by_score = allocate(anatomy, Budget(0.25, "blocks"), scores, allocation="global", rank_by="score")
    by_parameter = allocate(anatomy, Budget(0.1, "blocks"), scores, allocation="global")
    assert all(mask.tolist() == [False, True] for mask in by_score.kv_groups)
    assert all(mask.tolist()[1] for mask in by_parameter.kv_groups)


# --- block influence -------------------------------------------------------------------------------------------------------


def with_dead_layer(index, family="llama"):
    model = tiny_model(family, num_hidden_layers=10, **({"layer_types": ["full_attention"] * 10} if family == "gemma3" else {}))
    with torch.no_grad():
        layer = model.model.layers[index]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
@pytest.mark.parametrize("config", [{}, {"unit": "sublayers"}, {"measure": "relative_l2"}, {"choice": "window"}], ids=str)
def test_a_block_that_does_nothing_goes_first_and_nothing_changes(family, config, tmp_path):
    model = with_dead_layer(4, family)
    anatomy = Anatomy.from_model(model)
    layer = anatomy.attention_params(4, 4, 2, 32).total + anatomy.mlp_params(4, 48, 32).total
    with torch.no_grad():
        dense = model(TOKENS).logits
        masks = prune(BlockInfluence(BlockInfluenceConfig(**config)), model, tmp_path, layer / anatomy.dense_params.total, "total")
        assert masks.attn.tolist() == masks.mlp.tolist() == [i != 4 for i in range(10)]
        torch.testing.assert_close(slice_model(model, masks)(TOKENS).logits, dense, atol=1e-5, rtol=1e-5)


def test_block_influence_averages_the_cosine_of_tokens_and_skips_the_first(tmp_path):
    from prunebench.methods.block_influence import Influence

    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    with torch.no_grad():
        hidden = model(TOKENS, output_hidden_states=True).hidden_states
    for skip in (0, 1):
        influence = Influence(anatomy, "cosine", skip)
        with influence.watching(model, pairs=True):
            run_decoder(model, TOKENS.split(2), progress=quiet, label="")
        cosine = torch.cosine_similarity(hidden[1][:, skip:], hidden[2][:, skip:], dim=-1)
        assert influence.scores()["block"][1] == pytest.approx(1 - float(cosine.mean()), abs=1e-6)
        both = torch.cosine_similarity(hidden[0][:, skip:], hidden[2][:, skip:], dim=-1)
        assert float(influence.between()[0, 2]) == pytest.approx(1 - float(both.mean()), abs=1e-6)


@pytest.mark.parametrize(("settings", "gone"), [({}, 1), ({"skip_tokens": 1}, 1), ({"skip_tokens": 0}, 2)], ids=str)
def test_skipped_tokens_do_not_count_for_what_a_layer_is_worth(tmp_path, settings, gone):
    """Layer 1 changes the first token alone, and much; layer 2 changes every token a little."""
    model = tiny_model("llama", num_hidden_layers=6)
    tokens = TOKENS.masked_fill(TOKENS == 3, 4)
    tokens[:, 0] = 3
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[:, 0] = 0  # the residual dimension that only the first token has
        embedding[3] = 0
        embedding[3, 0] = 10
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        first_token, all_tokens = model.model.layers[1], model.model.layers[2]
        first_token.self_attn.o_proj.weight.zero_()
        first_token.mlp.gate_proj.weight[:, 1:] = 0
        first_token.mlp.down_proj.weight.mul_(100)
        for projection in (all_tokens.self_attn.o_proj, all_tokens.mlp.down_proj):
            projection.weight.mul_(0.1)
    anatomy = Anatomy.from_model(model)
    layer = anatomy.attention_params(1, 4, 2, 32).total + anatomy.mlp_params(1, 48, 32).total
    config = BlockInfluenceConfig(**settings)
    masks = prune(BlockInfluence(config), model, tmp_path, layer / anatomy.dense_params.total, "total", tokens)
    assert masks.attn.tolist() == masks.mlp.tolist() == [i != gone for i in range(6)]


def test_first_and_last_blocks_stay_in_deep_models(tmp_path):
    masks = prune(BlockInfluence(), tiny_model("llama", num_hidden_layers=10), tmp_path, sparsity=0.5)
    assert masks.attn[0]
    assert masks.attn[9]
    assert int((~masks.attn).sum()) >= 4


def test_the_rest_of_a_budget_is_trimmed_from_the_weakest_channels(tmp_path):
    model = tiny_model("llama", num_hidden_layers=10)
    masks = prune(BlockInfluence(), model, tmp_path, sparsity=0.25)
    trimmed = [i for i, mask in enumerate(masks.ffn) if mask.any() and not mask.all()]
    assert len(trimmed) == 1
    norms = magnitude_scores(model, Anatomy.from_model(model), norm="l2", members="output").ffn[trimmed[0]]
    assert norms[~masks.ffn[trimmed[0]]].max() <= norms[masks.ffn[trimmed[0]]].min()


def test_a_window_is_contiguous(tmp_path):
    config = BlockInfluenceConfig(choice="window")
    masks = prune(BlockInfluence(config), tiny_model("llama", num_hidden_layers=12), tmp_path, sparsity=0.4)
    gone = (~masks.attn).nonzero().flatten().tolist()
    assert gone == list(range(gone[0], gone[0] + len(gone)))
    assert len(gone) >= 4
