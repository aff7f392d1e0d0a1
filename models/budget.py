"""How much must go: a sparsity target, what it counts, and the counts of units that meet it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from prunebench.models.anatomy import Anatomy, ParamCount
from prunebench.models.errors import BudgetError

Basis = Literal["total", "blocks"]
TOLERANCE = 0.005  # of the dense parameter count


@dataclass(frozen=True)
class Budget:
    """A parameter budget.

    Attributes:
        sparsity: fraction of the dense parameters to remove, in (0, 1).
        basis: what is counted: "total" (all parameters, tied embeddings once) or "blocks" (projections of the decoder
            layers only); see `ParamCount`.
    """

    sparsity: float
    basis: Basis = "total"

    def __post_init__(self) -> None:
        if not isinstance(self.sparsity, (int, float)) or not 0 < self.sparsity < 1:
            raise BudgetError(f"sparsity {self.sparsity!r} is out of range; it is a fraction between 0 and 1, both excluded.")
        if self.basis not in ("total", "blocks"):
            raise BudgetError(f"basis {self.basis!r} is unknown; use 'total' or 'blocks'.")

    def params_to_keep(self, anatomy: Anatomy) -> int:
        """Parameters (in this basis) that may stay."""
        return round((1 - self.sparsity) * anatomy.dense_params.of(self.basis))

    def params_to_remove(self, anatomy: Anatomy) -> int:
        """Parameters (in this basis) that must go."""
        return anatomy.dense_params.of(self.basis) - self.params_to_keep(anatomy)

    def achieved(self, dense: ParamCount, kept: ParamCount) -> float:
        """Sparsity that a model with `kept` parameters has, in this basis."""
        return 1 - kept.of(self.basis) / dense.of(self.basis)

    def check(self, dense: ParamCount, kept: ParamCount) -> None:
        """Refuses a result that misses the budget by more than 0.5 % of the dense parameter count.

        Raises:
            BudgetError: says the target and what was achieved.
        """
        achieved = self.achieved(dense, kept)
        if abs(achieved - self.sparsity) > TOLERANCE:
            raise BudgetError(
                f"the budget is sparsity {self.sparsity:.4f} ({self.basis}), but {achieved:.4f} was achieved; "
                f"at most {TOLERANCE} of the dense parameters may lie between."
            )


@dataclass(frozen=True)
class LayerCounts:
    """How many units of one layer go."""

    kv_groups: int
    channels: int


def solve_uniform(anatomy: Anatomy, budget: Budget, layers: Collection[int] | None = None) -> dict[int, LayerCounts]:
    """Counts of KV groups and MLP channels to remove, the same fraction in every layer, that meet the budget.

    The fraction rho = (parameters to remove) / (parameters of the heads and channels of `layers`). As in LLM-Pruner's
    code, floor(rho * groups) KV groups go in each layer; MLP channels, the fine unit, make up the rest to the nearest
    channel, spread evenly. Where channels alone can't, one more KV group of every layer goes. At least one group and one
    channel of each layer stay.

    Args:
        layers: indices of the layers that may be pruned; None for all.

    Raises:
        BudgetError: the layers don't hold that many removable parameters.
    """
    chosen = sorted(range(len(anatomy.layers)) if layers is None else layers)
    removable = sum(_removable(anatomy, i) for i in chosen)
    target = budget.params_to_remove(anatomy)
    if target > removable:
        dense = anatomy.dense_params.of(budget.basis)
        raise BudgetError(
            f"sparsity {budget.sparsity} ({budget.basis}) is impossible for this model: heads and channels of {len(chosen)} "
            f"of {len(anatomy.layers)} layers can give up at most {removable / dense:.4f} of its parameters."
        )
    whole = sum(
        anatomy.kv_group_params(i) * anatomy.layer_sizes(i)[1] + anatomy.channel_params(i) * anatomy.layer_sizes(i)[2] for i in chosen
    )
    fraction = target / whole
    most_groups = max((anatomy.layer_sizes(i)[1] for i in chosen), default=0)
    for extra in range(most_groups + 1):
        groups = {i: max(0, min(int(fraction * g + 1e-9) + extra, g - 1)) for i in chosen for g in [anatomy.layer_sizes(i)[1]]}
        rest = target - sum(count * anatomy.kv_group_params(i) for i, count in groups.items())
        channels = _spread_channels(anatomy, chosen, rest)
        if channels is not None:
            return {i: LayerCounts(groups[i], channels[i]) for i in chosen}
    raise BudgetError(
        f"sparsity {budget.sparsity} ({budget.basis}) can't be met by equal counts in {len(chosen)} layers of this model; "
        "use another sparsity, more layers or a global allocation."
    )


def _removable(anatomy: Anatomy, layer: int) -> int:
    _, groups, channels = anatomy.layer_sizes(layer)
    return anatomy.kv_group_params(layer) * max(groups - 1, 0) + anatomy.channel_params(layer) * max(channels - 1, 0)


def _spread_channels(anatomy: Anatomy, layers: list[int], params: int) -> dict[int, int] | None:
    """Channels to remove per layer, in proportion to each layer's width, for `params` in all; None if it can't be."""
    if params <= 0:
        return dict.fromkeys(layers, 0) if params > -min((anatomy.channel_params(i) or 1 for i in layers), default=1) else None
    widths = {i: anatomy.layer_sizes(i)[2] for i in layers}
    available = sum(max(width - 1, 0) * anatomy.channel_params(i) for i, width in widths.items())
    if params > available:
        return None
    fraction = params / sum(width * anatomy.channel_params(i) for i, width in widths.items())
    counts = {i: min(int(fraction * width), max(width - 1, 0)) for i, width in widths.items()}
    rest = params - sum(count * anatomy.channel_params(i) for i, count in counts.items())
    while True:
        open_layers = [i for i in layers if counts[i] < widths[i] - 1]
        if not open_layers:
            return counts
        nearest = sorted(open_layers, key=lambda i: (counts[i] - fraction * widths[i], i))
        for i in nearest:
            if rest < anatomy.channel_params(i) / 2:
                return counts
            counts[i] += 1
            rest -= anatomy.channel_params(i)
