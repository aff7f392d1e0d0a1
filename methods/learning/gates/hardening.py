"""This module turns learned gates into masks that meet the budget exactly, by three rules in this order.

1. *Shift.* Training leaves the expected size near the budget, not on it. One number is added to every log-alpha, so that the
   expected size is the budget; a run that converged needs a shift near 0, and `Hardened.shift` says what this one needed.
2. *Round.* In every vector of gates (a layer's KV groups, a layer's channels, the residual width) round(sum of P(open)) units
   stay, those of the largest log-alpha, as in Compresso's code. Layers compete through training only.
   Of query heads, every kept group of a layer keeps the same number, the rounded mean.
3. *Repair.* Rounding leaves a few units of difference. The finest units (MLP channels; KV groups, then residual dimensions
   where there are too few) go or come back across all layers by log-alpha until the budget is met to the nearest unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunebench.methods.learning.gates.expected_size import ExpectedSize
from prunebench.methods.learning.gates.gates import GateSet
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import TOLERANCE, Budget
from prunebench.models.masks import Masks

Survivors = Literal["soft", "hard"]

MOST_SHIFT = 30.0  # beyond it every gate is decided
BISECTIONS = 60


@dataclass(frozen=True)
class Hardened:
    """Holds what is left when gates stop being random.

    Attributes:
        masks: what stays; meets the budget.
        values: by kind, the gate of every unit: 0 where it goes, else 1 ("hard") or its deterministic value ("soft").
        shift: what was added to every log-alpha to land on the budget.
    """

    masks: Masks
    values: dict[str, Tensor]
    shift: float


@torch.no_grad()
def harden(gates: GateSet, anatomy: Anatomy, budget: Budget, survivors: Survivors) -> Hardened:
    """Decides every gate, by rules 1 to 3 of this module.

    Raises:
        BudgetError: no shift and no repair meets the budget (too few units have gates).
    """
    log_alpha = {kind: parameter.detach().cpu() for kind, parameter in gates.log_alpha.items()}
    shift = landing_shift(gates, ExpectedSize(anatomy, budget.basis), budget.params_to_keep(anatomy))
    kept = round_counts(gates, anatomy, log_alpha, shift)
    _repair(gates, anatomy, budget, log_alpha, kept)
    masks = as_masks(gates, anatomy, kept)
    budget.check(anatomy.dense_params, masks.count(anatomy))
    values = {}
    for kind, mask in kept.items():
        scale = gates.distribution.deterministic(log_alpha[kind]) if survivors == "soft" else torch.ones(len(mask))
        values[kind] = torch.where(mask, scale, torch.zeros(())).to(gates.log_alpha[kind].device)
    return Hardened(masks, values, shift)


@torch.no_grad()
def deterministic_values(gates: GateSet, anatomy: Anatomy) -> dict[str, Tensor]:
    """Returns the gates as they stand without noise, by kind: 0 where rounding (rule 2) closes them, else their soft value."""
    log_alpha = {kind: parameter.detach().cpu() for kind, parameter in gates.log_alpha.items()}
    kept = round_counts(gates, anatomy, log_alpha)
    return {kind: gates.distribution.deterministic(log_alpha[kind]) * mask for kind, mask in kept.items()}


def landing_shift(gates: GateSet, size: ExpectedSize, params: int) -> float:
    """Finds what to add to every log-alpha for an expected size of `params`, by bisection (the size rises with the shift)."""
    low, high = -MOST_SHIFT, MOST_SHIFT
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if size.expected_params(gates.open_probabilities(middle)).item() < params:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def round_counts(gates: GateSet, anatomy: Anatomy, log_alpha: dict[str, Tensor], shift: float = 0.0) -> dict[str, Tensor]:
    """Rounds (rule 2): returns what stays of every kind, boolean, when round(sum of P) units of each vector stay."""
    chance = {kind: gates.distribution.nonzero_probability(values + shift) for kind, values in log_alpha.items()}
    kept = {kind: torch.zeros(len(values), dtype=torch.bool) for kind, values in log_alpha.items()}
    for kind in ("kv_groups", "ffn", "hidden"):
        for mask, probabilities, scores in _vectors(gates, kind, kept, chance, log_alpha):
            count = round(float(probabilities.sum(dtype=torch.float64)))
            mask[_highest(scores, max(count, kind == "hidden"))] = True
    if "q_heads" in kept:
        groups = gates.split("kv_groups", kept)
        for i, layer in enumerate(anatomy.layers):
            mask, probabilities, scores = (gates.split("q_heads", source)[i] for source in (kept, chance, log_alpha))  # type: ignore[index, assignment]
            if mask is None or layer.attention is None:
                continue
            per_group = layer.attention.q_heads_per_group
            here = groups[i] if groups is not None else None
            sums = probabilities.view(-1, per_group).sum(1)  # (groups,)
            mean = sums[here].mean() if here is not None and here.any() else sums.mean()
            count = min(max(round(float(mean)), 1), per_group)
            for group_mask, group_scores in zip(mask.view(-1, per_group), scores.view(-1, per_group), strict=True):
                group_mask[_highest(group_scores, count)] = True
    return kept


def as_masks(gates: GateSet, anatomy: Anatomy, kept: dict[str, Tensor]) -> Masks:
    """Makes masks of what stays by kind; a kind or a layer without gates stays whole."""

    def whole(kind: str, position: int) -> list[Tensor] | None:
        parts = gates.split(kind, kept)
        if parts is None:
            return None
        sizes = [anatomy.layer_sizes(i)[position] for i in range(len(anatomy.layers))]
        return [torch.ones(sizes[i], dtype=torch.bool) if part is None else part for i, part in enumerate(parts)]

    return Masks.of(anatomy, kv_groups=whole("kv_groups", 1), q_heads=whole("q_heads", 0), ffn=whole("ffn", 2), hidden=kept.get("hidden"))


def _repair(gates: GateSet, anatomy: Anatomy, budget: Budget, log_alpha: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
    """Moves single units until the budget is met (rule 3), in place."""
    target = budget.params_to_keep(anatomy)

    def excess() -> int:
        return as_masks(gates, anatomy, kept).count(anatomy).of(budget.basis) - target

    near = anatomy.dense_params.of(budget.basis) * TOLERANCE / 2
    for kind in ("ffn", "kv_groups", "ffn", "hidden", "ffn"):  # channels make up for what a coarse unit overshoots
        if kind in kept and (kind == "ffn" or abs(excess()) > near):
            _move_units(kept[kind], _ranks(gates, kind, log_alpha), excess, may_cross=kind != "ffn" and "ffn" in kept)


def _move_units(kept: Tensor, rank: list[float], excess: Callable[[], int], *, may_cross: bool) -> None:
    """Removes the lowest-ranked kept units, or brings back the highest-ranked removed ones, while that comes nearer.

    With `may_cross` the last one may overshoot by more than was missing.
    """
    before = excess()
    removing = before > 0
    candidates = [i for i in sorted(range(len(rank)), key=rank.__getitem__, reverse=not removing) if bool(kept[i]) == removing]
    moved = 0
    while candidates[moved:]:
        kept[candidates[moved]] = not removing
        after = excess()
        if not kept.any() or (abs(after) >= abs(before) and not may_cross):
            kept[candidates[moved]] = removing
            return
        moved += 1
        cost = abs(before - after)
        before = after
        if (before > 0) != removing:
            return
        # units cost about the same: having measured one, take nearly all that are needed at once
        stride = max(0, min(int(abs(before) / cost) - 2, len(candidates) - moved - 1))
        kept[candidates[moved : moved + stride]] = not removing
        moved += stride
        before = excess() if stride else before


def _ranks(gates: GateSet, kind: str, log_alpha: dict[str, Tensor]) -> list[float]:
    """Orders the units of one kind across layers, by log-alpha; equal ones are taken from all layers in turn."""
    keys: list[tuple[float, float]] = []
    for (scores,) in _vectors(gates, kind, log_alpha):
        place = torch.empty(len(scores), dtype=torch.float64)
        place[torch.argsort(scores, stable=True)] = torch.arange(len(scores), dtype=torch.float64) / len(scores)
        keys += zip(scores.tolist(), place.tolist(), strict=True)
    rank = [0.0] * len(keys)
    for position, i in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
        rank[i] = float(position)
    return rank


def _vectors(gates: GateSet, kind: str, *sources: dict[str, Tensor]) -> list[tuple[Tensor, ...]]:
    """Lists the vectors of one kind, each as a tuple of its views in all sources."""
    if kind not in sources[0]:
        return []
    if kind == "hidden":
        return [tuple(source[kind] for source in sources)]
    parts = [gates.split(kind, source) or () for source in sources]
    return [vector for vector in zip(*parts, strict=True) if vector[0] is not None]


def _highest(scores: Tensor, count: int) -> Tensor:
    """Returns the indices of the `count` largest scores; among equals the last stay."""
    return torch.argsort(scores, stable=True)[len(scores) - count :]
