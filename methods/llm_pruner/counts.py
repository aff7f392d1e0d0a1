"""How many units go: LLM-Pruner's own rounding, and whole widths and depths."""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, LayerCounts
from prunebench.models.errors import BadInput, BudgetError
from prunebench.models.masks import Masks


def paper_counts(anatomy: Anatomy, local_fraction: float, layers: list[int]) -> dict[int, LayerCounts]:
    """Units to remove in each layer as the official code rounds them: of C outputs n = C - int(C (1 - fraction)) go,
    channels n, KV groups floor(n / head_dim).

    Raises:
        BadInput: the fraction leaves a layer without a group or a channel.
    """
    counts = {}
    for i in layers:
        part = anatomy.layers[i].attention
        _, groups, channels = anatomy.layer_sizes(i)
        rows = groups * part.head_dim if part else 0
        removed = LayerCounts(
            (rows - int(rows * (1 - local_fraction))) // part.head_dim if part else 0, channels - int(channels * (1 - local_fraction))
        )
        if (part and removed.kv_groups >= groups) or (channels and removed.channels >= channels):
            raise BadInput(
                f"local_fraction {local_fraction} leaves layer {i} without a KV group or an MLP channel; at least one of each must stay."
            )
        counts[i] = removed
    return counts


def prune_width(anatomy: Anatomy, budget: Budget, scores: Tensor) -> Masks:
    """Removes the lowest-scored dimensions of the residual stream until the budget is met, to the nearest dimension."""
    order = torch.argsort(scores, stable=True)

    def without(count: int) -> Masks:
        hidden = torch.ones(anatomy.hidden_size, dtype=torch.bool)
        hidden[order[:count]] = False
        return Masks.of(anatomy, hidden=hidden)

    return _nearest(anatomy, budget, [without(count) for count in range(1, anatomy.hidden_size)], "the residual width")


def prune_depth(anatomy: Anatomy, budget: Budget) -> Masks:
    """Removes whole layers from the end, then, for what a whole layer would overshoot, channels of the last one that stays."""
    from prunebench.methods.allocation import remove_blocks

    return remove_blocks(anatomy, budget, [layer.index for layer in reversed(anatomy.layers)])


def _nearest(anatomy: Anatomy, budget: Budget, candidates: list[Masks], what: str) -> Masks:
    dense = anatomy.dense_params
    best = min(candidates, key=lambda masks: abs(budget.achieved(dense, masks.count(anatomy)) - budget.sparsity))
    try:
        budget.check(dense, best.count(anatomy))
    except BudgetError as error:
        raise BudgetError(f"{what} can't be cut finely enough: {error}") from None
    return best
