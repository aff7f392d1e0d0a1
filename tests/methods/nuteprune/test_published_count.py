"""The paper's own count of sparsity takes block matrices, with k and v always whole where queries are grouped."""

import pytest
import torch

from prunebench.methods.nuteprune.published_count import published_sparsity, published_sparsity_of
from prunebench.models.anatomy import Anatomy
from prunebench.models.masks import Masks
from prunebench.models.tiny import tiny_model


def half_of_everything(anatomy):
    sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]

    def half(count):
        return torch.arange(count) < count // 2

    return Masks.of(anatomy, kv_groups=[half(g) for _, g, _ in sizes], ffn=[half(c) for _, _, c in sizes], hidden=half(anatomy.hidden_size))


def test_without_grouped_queries_it_is_the_block_sparsity():
    anatomy = Anatomy.from_model(tiny_model("llama", num_key_value_heads=4))
    masks = half_of_everything(anatomy)
    assert published_sparsity_of(anatomy, masks) == pytest.approx(0.75, abs=1e-12)


def test_with_grouped_queries_k_and_v_count_as_whole():
    anatomy = Anatomy.from_model(tiny_model("llama"))
    layer = anatomy.layers[0]
    heads, groups, channels = anatomy.layer_sizes(0)
    assert groups < heads
    dim, width = layer.attention.head_dim, anatomy.hidden_size
    whole = width * (2 * dim * (heads + groups) + 3 * channels)
    kept = width // 2 * (2 * dim * heads // 2 + 3 * (channels // 2)) + width * 2 * dim * groups
    assert published_sparsity_of(anatomy, half_of_everything(anatomy)) == pytest.approx(1 - kept / whole, abs=1e-12)


def test_a_model_without_gates_counts_as_dense():
    assert published_sparsity(Anatomy.from_model(tiny_model("llama")), {}) == 0.0
