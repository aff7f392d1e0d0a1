"""From scores to masks: which units go, given how important each one is and how many parameters must go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.errors import BadInput, BudgetError
from prunebench.models.masks import Masks
from prunebench.models.suggest import unknown

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


# --- how many units each layer gives up ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shares:
    """What an allocation decides about.

    Attributes:
        scores: of every unit; layers: those that may be pruned.
        rank_by: by score per parameter, or by the score as it is where it is an average already (FLAP).
    """

    anatomy: Anatomy
    budget: Budget
    scores: UnitScores
    layers: list[int]
    rank_by: RankBy = "score_per_parameter"


Allocator = Callable[[Shares], Masks]
_ALLOCATIONS: dict[str, Allocator] = {}


def register_allocation(name: str) -> Callable[[Allocator], Allocator]:
    """Decorator that makes a way to spread the budget over layers known as `name`, to every method that scores units.

    Raises:
        BadInput: the name is taken.
    """

    def decorate(allocator: Allocator) -> Allocator:
        other = _ALLOCATIONS.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (allocator.__module__, allocator.__qualname__):
            raise BadInput(f"allocation {name!r} is defined twice: in {other.__module__} and in {allocator.__module__}.")
        _ALLOCATIONS[name] = allocator
        return allocator

    return decorate


def known_allocations() -> dict[str, Allocator]:
    """Every allocation by name."""
    return dict(_ALLOCATIONS)


def _known(name: str) -> str:
    if name not in _ALLOCATIONS:
        raise ValueError(str(unknown("allocation", name, _ALLOCATIONS)).rstrip("."))
    return name


Allocation = Annotated[str, AfterValidator(_known)]
"""Name of a registered allocation, as a field of a method's settings."""


def allocate(
    anatomy: Anatomy,
    budget: Budget,
    scores: UnitScores,
    *,
    allocation: str = "uniform",
    layers: list[int] | None = None,
    rank_by: RankBy = "score_per_parameter",
    added_params: int = 0,
) -> Masks:
    """Removes the lowest-scored units until the budget is met, to the nearest MLP channel.

    Args:
        allocation: a name of `known_allocations`.
        layers: those that may be pruned; None: all.
        rank_by: see `Shares`.
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
    masks = _ALLOCATIONS[_known(allocation)](Shares(anatomy, budget, scores, chosen, rank_by))
    budget.check(anatomy.dense_params, masks.count(anatomy))
    return masks


@register_allocation("uniform")
def _uniform(shares: Shares) -> Masks:
    """Removes the same fraction in every layer (`solve_uniform`), by score within a layer."""
    groups, channels = _everything(shares.scores)
    for i, counts in solve_uniform(shares.anatomy, shares.budget, shares.layers).items():
        groups[i][lowest(shares.scores.kv_groups[i], counts.kv_groups)] = False
        channels[i][lowest(shares.scores.ffn[i], counts.channels)] = False
    return Masks.of(shares.anatomy, kv_groups=groups, ffn=channels)


def _everything(scores: UnitScores) -> tuple[list[Tensor], list[Tensor]]:
    """Masks of groups and channels that keep all."""
    return tuple([torch.ones(len(score), dtype=torch.bool) for score in kind] for kind in (scores.kv_groups, scores.ffn))  # type: ignore[return-value]


def lowest(scores: Tensor, count: int) -> Tensor:
    """Indices of exactly `count` lowest scores; among equals the first go."""
    return torch.argsort(scores, stable=True)[:count]


@register_allocation("global")
def _global(shares: Shares) -> Masks:
    """Compares all units of all layers; one group and one channel of each layer always stay.

    By score per parameter a KV group, which holds hundreds of times the parameters of a channel, competes fairly.
    """
    anatomy, scores = shares.anatomy, shares.scores
    groups, channels = _everything(scores)
    units = []  # (rank, parameters, mask, position)
    for i in shares.layers:
        for masks, unit_scores, params in (
            (groups, scores.kv_groups, anatomy.kv_group_params(i)),
            (channels, scores.ffn, anatomy.channel_params(i)),
        ):
            spared = int(unit_scores[i].argmax()) if len(unit_scores[i]) else -1
            ranks = unit_scores[i].double() / (max(params, 1) if shares.rank_by == "score_per_parameter" else 1)
            units += [(rank, params, masks[i], j) for j, rank in enumerate(ranks.tolist()) if j != spared]
    rest = shares.budget.params_to_remove(anatomy)
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
    return Masks.of(anatomy, kv_groups=groups, ffn=channels)


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
