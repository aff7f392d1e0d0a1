"""This module counts sparsity as NutePrune's own code does, for comparison with its tables; budgets use `models.budget`.

The code counts the seven matrices of every layer, without norms, biases or embeddings. In models with grouped queries it has gates
on query heads only, so k and v count as parts that always stay whole (docs/methods/nuteprune.md, "What sparsity counts").
"""

from __future__ import annotations

from collections.abc import Mapping

from prunebench.models.anatomy import Anatomy
from prunebench.models.masks import Masks


def published_sparsity(anatomy: Anatomy, expected: Mapping[str, float]) -> float:
    """Returns the fraction of the block matrices that goes, by the published count.

    Args:
        expected: what a training step logs: `expected_heads.layer_NN` (KV groups), `expected_channels.layer_NN` and
            `expected_hidden`; what has no gates is missing, and stays.

    Source: NutePrune, arXiv 2402.09773, released code.
    """
    width = expected.get("expected_hidden", float(anatomy.hidden_size))
    dense = kept = 0.0
    for layer in anatomy.layers:
        heads, groups, channels = anatomy.layer_sizes(layer.index)
        dim = layer.attention.head_dim if layer.attention else 0
        kept_groups = expected.get(f"expected_heads.layer_{layer.index:02d}", float(groups))
        kept_channels = expected.get(f"expected_channels.layer_{layer.index:02d}", float(channels))
        kept_heads = kept_groups * (heads / groups if groups else 0)
        queries, keys = 2 * dim * heads, 2 * dim * groups  # q rows and o columns; k and v rows: each for every residual dimension
        dense += anatomy.hidden_size * (queries + keys + 3 * channels)
        kept += width * (2 * dim * kept_heads + 3 * kept_channels)
        kept += width * 2 * dim * kept_groups if heads == groups else anatomy.hidden_size * keys
    return 1 - kept / dense


def published_sparsity_of(anatomy: Anatomy, masks: Masks) -> float:
    """Returns the `published_sparsity` of what `masks` keep."""
    expected = {"expected_hidden": float(masks.hidden.sum())}
    for layer in anatomy.layers:
        expected[f"expected_heads.layer_{layer.index:02d}"] = float(masks.kv_groups[layer.index].sum())
        expected[f"expected_channels.layer_{layer.index:02d}"] = float(masks.ffn[layer.index].sum())
    return published_sparsity(anatomy, expected)
