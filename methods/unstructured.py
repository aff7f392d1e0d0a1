"""What the unstructured references share: which weights they zero, how many, and the walk from layer to layer.

Nothing gets smaller or faster on dense kernels: masks stay full, `structured` is False, and the leaderboard keeps such rows
in a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.layerwise import StatisticT, walk_layers, watched_inputs
from prunebench.methods.pruner import PrunerConfig, Run
from prunebench.models.anatomy import Anatomy, Layer
from prunebench.models.budget import TOLERANCE, Budget
from prunebench.models.errors import BudgetError

Pattern = Literal["unstructured", "2:4"]


class UnstructuredConfig(PrunerConfig):
    pattern: Pattern = Field("unstructured", description="any weights, or exactly two zeros in every four inputs of a row (half of all)")
    batch_size: int = Field(8, ge=1, description="samples that one layer runs on at a time; does not change the result")


def zero_fraction(anatomy: Anatomy, budget: Budget, pattern: Pattern) -> float:
    """The share of the decoder layers' projection weights to set to zero.

    The zeros are as many as the parameters that a structured method would remove for the same budget; embeddings and head
    are never touched, so that a budget on all parameters asks for more zeros in the layers.

    Raises:
        BudgetError: more than every weight, or a 2:4 pattern with another share than a half.
    """
    weights = sum(rows * columns for layer in anatomy.layers for rows, columns in _shapes(anatomy, layer))
    fraction = budget.params_to_remove(anatomy) / weights
    if fraction >= 1:
        raise BudgetError(f"sparsity {budget.sparsity} ({budget.basis}) is more than all weights of the decoder layers.")
    if pattern == "2:4" and abs(fraction - 0.5) > TOLERANCE:
        raise BudgetError(
            f"pattern 2:4 zeroes half of the layers' weights, and sparsity {budget.sparsity} ({budget.basis}) asks for {fraction:.4f}; "
            "use sparsity 0.5 with basis 'blocks'."
        )
    return fraction


def _shapes(anatomy: Anatomy, layer: Layer) -> list[tuple[int, int]]:
    shapes = []
    if layer.attention:
        part = layer.attention
        shapes += [(rows.count, anatomy.hidden_size) for rows in (part.q, part.k, part.v)] + [(anatomy.hidden_size, part.q.count)]
    if layer.mlp:
        shapes += [(layer.mlp.width, anatomy.hidden_size)] * 2 + [(anatomy.hidden_size, layer.mlp.width)]
    return shapes


def shared_inputs(layer: Layer) -> list[list[str]]:
    """Paths of a layer's projections, those with the same input together."""
    groups: list[list[str]] = []
    if layer.attention:
        groups += [[layer.attention.q.module, layer.attention.k.module, layer.attention.v.module], [layer.attention.o]]
    if layer.mlp:
        groups += [[layer.mlp.gate.module, layer.mlp.up.module], [layer.mlp.down]]
    return [list(dict.fromkeys(group)) for group in groups]


def zero_layer_by_layer(
    model: PreTrainedModel,
    anatomy: Anatomy,
    samples: Tensor,
    statistic: Callable[[], StatisticT],
    zero: Callable[[Tensor, StatisticT], Tensor],
    *,
    batch_size: int,
    run: Run,
) -> None:
    """Replaces the weight of every projection by `zero(weight, statistic of its inputs)`, float32 in and out.

    The inputs of a layer come from the layers before it as they are left; within a layer, from its dense projections.
    """

    def visit(index: int, run_layer: Callable[[], Tensor]) -> Tensor:
        groups = shared_inputs(anatomy.layers[index])
        with watched_inputs(model, [group[0] for group in groups], statistic) as found:
            run_layer()
        for group in groups:
            for path in group:
                weight = model.get_parameter(f"{path}.weight")
                with torch.no_grad():
                    weight.copy_(zero(weight.detach().float(), found[group[0]]))
        return run_layer()

    walk_layers(model, samples, visit, batch_size=batch_size, progress=run.progress)


def drop_lowest(scores: Tensor, fraction: float) -> Tensor:
    """(rows, columns) bool, True where a weight goes: the lowest `fraction` of each row, exactly; among equals the first."""
    count = round(fraction * scores.shape[1])
    order = torch.argsort(scores, dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def drop_two_of_four(scores: Tensor) -> Tensor:
    """(rows, columns) bool, True at the two lowest of every aligned four columns of a row; a shorter last group stays."""
    rows, columns = scores.shape
    whole = columns - columns % 4
    dropped = torch.zeros_like(scores, dtype=torch.bool)
    fours = drop_lowest(scores[:, :whole].reshape(-1, 4), 0.5)  # (rows * columns / 4, 4)
    dropped[:, :whole] = fours.view(rows, whole)
    return dropped
