"""The anatomy reads what is there and refuses what it can't account for."""

import pytest
import torch
import transformers
from torch import nn

from prunebench.models.anatomy import Anatomy, count_params
from prunebench.models.errors import UnsupportedModel
from prunebench.models.masks import Masks
from prunebench.models.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read(family):
    model = tiny_model(family)
    anatomy = Anatomy.from_model(model)
    assert len(anatomy.layers) == 3
    assert anatomy.hidden_size == 32
    assert anatomy.layer_sizes(0) == (4, 1 if family == "llama_mqa" else 2, 48)
    assert anatomy.is_tied == model.config.tie_word_embeddings
    assert anatomy.norm_offset == (1.0 if family.startswith("gemma") else 0.0)
    assert anatomy.layers[0].attention.qk_norm_spans_heads == (family == "olmo2")
    assert len(anatomy.layers[0].attention.norms) == (2 if family in ("gemma2", "gemma3") else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_unit_costs_are_what_removing_one_unit_saves(family):
    anatomy = Anatomy.from_model(tiny_model(family))
    _, groups, _ = anatomy.layer_sizes(1)

    def blocks_without(**masks):
        return anatomy.dense_params.blocks - Masks.of(anatomy, **masks).count(anatomy).blocks

    one_channel = [torch.arange(48) != 5 if i == 1 else torch.ones(48, dtype=torch.bool) for i in range(3)]
    assert blocks_without(ffn=one_channel) == anatomy.channel_params(1)
    if groups > 1:
        one_group = [torch.arange(groups) != 1 if i == 1 else torch.ones(groups, dtype=torch.bool) for i in range(3)]
        assert blocks_without(kv_groups=one_group) == anatomy.kv_group_params(1)
    per_group = 4 // groups
    one_head_each = [torch.arange(4) % per_group != 0 if i == 1 else torch.ones(4, dtype=torch.bool) for i in range(3)]
    assert blocks_without(q_heads=one_head_each) == groups * anatomy.q_head_params(1)


def test_other_architectures_are_refused_with_the_missing_module_named():
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)
    with pytest.raises(UnsupportedModel, match="decoder layers `layers`"):
        Anatomy.from_model(transformers.GPT2LMHeadModel(config))


def test_a_mixture_of_experts_is_refused_by_the_name_of_a_module():
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=16,
        num_local_experts=2,
    )
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.0\.mlp"):
        Anatomy.from_model(transformers.MixtralForCausalLM(config))


def test_a_parameter_that_belongs_to_no_unit_is_refused_by_name():
    model = tiny_model("llama")
    model.model.layers[1].self_attn.sinks = nn.Parameter(torch.zeros(4))
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.self_attn\.sinks"):
        Anatomy.from_model(model)


def test_a_norm_that_subtracts_the_mean_is_refused():
    model = tiny_model("llama")
    model.model.norm = nn.LayerNorm(32, bias=False)
    with pytest.raises(UnsupportedModel, match=r"model\.norm is a LayerNorm"):
        Anatomy.from_model(model)


def test_tied_embeddings_count_once():
    tied, untied = tiny_model("llama_tied"), tiny_model("llama")
    assert count_params(untied).total - count_params(tied).total == 128 * 32
    assert Anatomy.from_model(tied).dense_params == count_params(tied)
