"""From scores to masks: which units go, given how important each one is and how many parameters must go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.errors import BudgetError
from prunebench.models.masks import Masks

Allocation = Literal["uniform", "global"]
RankBy = Literal["score_per_parameter", "score"]
SubLayer = Literal["attn", "mlp"]


@dataclass(frozen=True)
class UnitScores:
    """Importance of every prunable unit; larger means keep. Tensors are on the CPU, finite.

    Attributes:
        kv_groups: per layer (num_kv_groups,).
        ffn: per layer (mlp width,).
    """

    kv_groups: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]


def unprotected_layers(anatomy: Anatomy, protect_first: int, protect_last: int) -> list[int]:
    """Indices of the layers that may be pruned.

    Raises:
        BudgetError: no layer is left.
    """
    layers = list(range(protect_first, len(anatomy.layers) - protect_last))
    if not layers:
        raise BudgetError(
            f"protect_first {protect_first} and protect_last {protect_last} leave none of the model's "
            f"{len(anatomy.layers)} layers to prune."
        )
    return layers


def allocate(
    anatomy: Anatomy,
    budget: Budget,
    scores: UnitScores,
    *,
    allocation: Allocation = "uniform",
    layers: list[int] | None = None,
    rank_by: RankBy = "score_per_parameter",
    added_params: int = 0,
) -> Masks:
    """Removes the lowest-scored units until the budget is met, to the nearest MLP channel.

    "uniform" removes the same fraction in every layer (`solve_uniform`), choosing by score within a layer. "global"
    compares all units of all layers by score per parameter, so that a KV group, which holds hundreds of times the
    parameters of a channel, competes fairly. One group and one channel of each layer always stay.

    Args:
        rank_by: of "global": by score per parameter, or by the score as it is where it is an average already (FLAP).
        added_params: parameters that the method itself adds (biases that compensate), which must be saved elsewhere.

    Raises:
        BudgetError: the budget can't be met.
        ValueError: a score is not finite.
    """
    for name in ("kv_groups", "ffn"):
        for i, score in enumerate(getattr(scores, name)):
            if not torch.isfinite(score).all():
                raise ValueError(f"layer {i}: some {name} scores are not finite")
    if added_params:
        budget = Budget((budget.params_to_remove(anatomy) + added_params) / anatomy.dense_params.of(budget.basis), budget.basis)
    chosen = list(range(len(anatomy.layers))) if layers is None else layers
    groups = [torch.ones(len(score), dtype=torch.bool) for score in scores.kv_groups]
    channels = [torch.ones(len(score), dtype=torch.bool) for score in scores.ffn]
    if allocation == "uniform":
        for i, counts in solve_uniform(anatomy, budget, chosen).items():
            groups[i][lowest(scores.kv_groups[i], counts.kv_groups)] = False
            channels[i][lowest(scores.ffn[i], counts.channels)] = False
    else:
        _remove_globally(anatomy, budget, scores, chosen, groups, channels, rank_by)
    return Masks.of(anatomy, kv_groups=groups, ffn=channels)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Indices of exactly `count` lowest scores; among equals the first go."""
    return torch.argsort(scores, stable=True)[:count]


def _remove_globally(
    anatomy: Anatomy,
    budget: Budget,
    scores: UnitScores,
    layers: list[int],
    groups: list[Tensor],
    channels: list[Tensor],
    rank_by: RankBy,
) -> None:
    units = []  # (rank, parameters, mask, position)
    for i in layers:
        for masks, unit_scores, params in (
            (groups, scores.kv_groups, anatomy.kv_group_params(i)),
            (channels, scores.ffn, anatomy.channel_params(i)),
        ):
            spared = int(unit_scores[i].argmax()) if len(unit_scores[i]) else -1
            ranks = unit_scores[i].double() / (max(params, 1) if rank_by == "score_per_parameter" else 1)
            units += [(rank, params, masks[i], j) for j, rank in enumerate(ranks.tolist()) if j != spared]
    rest = budget.params_to_remove(anatomy)
    left = []
    for _, params, mask, position in sorted(units, key=lambda unit: unit[0]):
        if params <= rest:
            mask[position] = False
            rest -= params
        else:  # a KV group may be too large for what is left to remove; channels fill up
            left.append((params, mask, position))
    finest = min((params for params, _, _ in left), default=0)
    if left and rest > finest / 2:
        _, mask, position = next(unit for unit in left if unit[0] == finest)
        mask[position] = False
    dense = anatomy.dense_params
    kept = Masks.of(anatomy, kv_groups=groups, ffn=channels).count(anatomy)
    budget.check(dense, kept)


def remove_blocks(anatomy: Anatomy, budget: Budget, order: Sequence[int], channel_scores: Sequence[Tensor] | None = None) -> Masks:
    """Removes whole layers in the given order until one more would overshoot; that layer then gives up the rest.

    Whole layers are too coarse for a budget (a layer of LLaMA-7B is 3 % of it), so the next layer in the order loses as many
    MLP channels as are missing, and its attention before them where its channels are too few.

    Args:
        order: layers, the first to go first; layers that are not named stay.
        channel_scores: per layer (channels,), larger means keep; None removes channels from the end.

    Raises:
        BudgetError: the layers in `order` don't hold that many parameters, or a layer can't be cut finely enough.
    """
    units: list[tuple[SubLayer, int]] = []
    rest = budget.params_to_remove(anatomy)
    for i in order:
        attention, mlp = (_sublayer_params(anatomy, budget, kind, i) for kind in ("attn", "mlp"))
        if attention + mlp <= rest or mlp - anatomy.channel_params(i) < rest >= attention:
            units += [("attn", i), ("mlp", i)]
        else:
            units.append(("mlp", i))
        rest = rest - attention - mlp if attention + mlp <= rest else 0  # at 0 the others only give up what is still missing
    return remove_sublayers(anatomy, budget, units, channel_scores)


def remove_sublayers(
    anatomy: Anatomy, budget: Budget, order: Sequence[tuple[SubLayer, int]], channel_scores: Sequence[Tensor] | None = None
) -> Masks:
    """Removes attentions and MLPs in the given order; an MLP that would overshoot gives up channels for the rest.

    An attention that would overshoot is passed over. For `channel_scores` and errors see `remove_blocks`.
    """
    keep = {kind: torch.ones(len(anatomy.layers), dtype=torch.bool) for kind in ("attn", "mlp")}
    ffn = [torch.ones(anatomy.layer_sizes(layer.index)[2], dtype=torch.bool) for layer in anatomy.layers]
    rest = budget.params_to_remove(anatomy)
    for kind, i in order:
        params = _sublayer_params(anatomy, budget, kind, i)
        if params <= rest:
            keep[kind][i] = False
            rest -= params
        elif kind == "mlp":
            channels = len(ffn[i])
            scores = -torch.arange(channels) if channel_scores is None else channel_scores[i]
            count = min(round(rest / anatomy.channel_params(i)), channels - 1)
            ffn[i][lowest(scores, count)] = False
            rest -= count * anatomy.channel_params(i)
    masks = Masks.of(anatomy, ffn=ffn, attn=keep["attn"], mlp=keep["mlp"])
    budget.check(anatomy.dense_params, masks.count(anatomy))
    return masks


def _sublayer_params(anatomy: Anatomy, budget: Budget, kind: SubLayer, layer: int) -> int:
    heads, groups, channels = anatomy.layer_sizes(layer)
    if kind == "attn":
        return anatomy.attention_params(layer, heads, groups, anatomy.hidden_size).of(budget.basis)
    return anatomy.mlp_params(layer, channels, anatomy.hidden_size).of(budget.basis)
