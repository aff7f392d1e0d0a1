"""This module counts the parameters that a model is expected to keep when each gate is open with some probability.

Every weight matrix of a block has one side on the residual stream, so the expectation is a product of sums and costs a
few reductions, whatever the size of the model (docs/methods/compresso.md, eq. 6):

    (sum of P_hidden) * (a * sum of P_group + b * sum of P_query + c * sum of P_channel + const) + (the same for biases)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Basis


@dataclass(frozen=True)
class OpenProbabilities:
    """Holds the chance of each gate to be open; None where that kind has no gates, so that all its units stay.

    kv_groups, q_heads, ffn: one entry a layer, None for a layer without gates; hidden: (hidden_size,).
    A query head's own chance is given that its group stays.
    """

    kv_groups: tuple[Tensor | None, ...] | None = None
    q_heads: tuple[Tensor | None, ...] | None = None
    ffn: tuple[Tensor | None, ...] | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class _LayerCost:
    """Holds the parameters of one unit of each kind: `wide` for each residual dimension, `flat` whatever the width."""

    group_wide: int
    group_flat: int
    query_wide: int
    query_flat: int
    channel_wide: int
    channel_flat: int
    wide: int
    flat: int


class ExpectedSize:
    """Computes the expected parameters of one model in one basis; they are `Masks.count` where every probability is 0 or 1.

    Norms and output biases of a sub-layer that loses all its units count as if it stayed: Masks drop them, which only makes
    the model smaller, by less than 0.01 % of it.

    Source: Compresso, arXiv 2310.05015; its code forms the outer product in half precision, we don't, and counts single heads.
    """

    def __init__(self, anatomy: Anatomy, basis: Basis) -> None:
        self.dense = anatomy.dense_params.of(basis)
        total = basis == "total"
        costs = [_layer_cost(anatomy, layer.index, total=total) for layer in anatomy.layers]
        self._sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
        self._hidden_size = anatomy.hidden_size
        self._outer_flat = sum(c.flat for c in costs) + (anatomy.head_bias * anatomy.vocab_size if total else 0)
        self._outer_wide = sum(c.wide for c in costs) + (anatomy.outer_params(1) - anatomy.head_bias * anatomy.vocab_size if total else 0)
        self._group = _spread([(c.group_wide, c.group_flat) for c in costs], [g for _, g, _ in self._sizes])
        self._query = _spread([(c.query_wide, c.query_flat) for c in costs], [h for h, _, _ in self._sizes])
        self._channel = _spread([(c.channel_wide, c.channel_flat) for c in costs], [c for _, _, c in self._sizes])
        per_group = torch.tensor([h // g for h, g, _ in self._sizes for _ in range(g)], dtype=torch.int64)
        self._group_of_query = torch.arange(len(per_group)).repeat_interleave(per_group)

    def expected_params(self, open_: OpenProbabilities) -> Tensor:
        """Returns the expected number of parameters, a float64 scalar with its gradient."""
        groups = self._flat(open_.kv_groups, 1)
        queries = self._flat(open_.q_heads, 0)
        channels = self._flat(open_.ffn, 2)
        device = next((p.device for p in (groups, queries, channels, open_.hidden) if p is not None), torch.device("cpu"))
        self._move(device)
        sums = torch.tensor([self._outer_wide, self._outer_flat], dtype=torch.float64, device=device)  # for each residual dimension, flat
        sums = sums + (self._group.sum(1) if groups is None else self._group @ groups)
        if groups is not None or queries is not None:
            of_group = 1.0 if groups is None else groups[self._group_of_query]
            sums = sums + self._query @ (of_group if queries is None else queries * of_group)
        else:
            sums = sums + self._query.sum(1)
        sums = sums + (self._channel.sum(1) if channels is None else self._channel @ channels)
        width = float(self._hidden_size) if open_.hidden is None else open_.hidden.sum(dtype=torch.float64)
        return width * sums[0] + sums[1]

    def sparsity(self, open_: OpenProbabilities) -> Tensor:
        """Returns the expected fraction of the dense parameters that goes, a float64 scalar with its gradient."""
        return 1 - self.expected_params(open_) / self.dense

    def _flat(self, parts: tuple[Tensor | None, ...] | None, position: int) -> Tensor | None:
        if parts is None or all(part is None for part in parts):
            return None
        like = next(part for part in parts if part is not None)
        counts = [sizes[position] for sizes in self._sizes]
        whole = [like.new_ones(count) if part is None else part for part, count in zip(parts, counts, strict=True)]
        return torch.cat(whole).double()

    def _move(self, device: torch.device) -> None:
        if self._group.device != device:
            for name in ("_group", "_query", "_channel", "_group_of_query"):
                setattr(self, name, getattr(self, name).to(device))


def _spread(costs: list[tuple[int, int]], counts: list[int]) -> Tensor:
    """Returns (2, units of all layers) float64: each unit's parameters for each residual dimension, and flat."""
    return torch.tensor(costs, dtype=torch.float64).repeat_interleave(torch.tensor(counts), dim=0).T.contiguous()


def _layer_cost(anatomy: Anatomy, index: int, *, total: bool) -> _LayerCost:
    attention, mlp = anatomy.layers[index].attention, anatomy.layers[index].mlp
    group_wide = group_flat = query_wide = query_flat = channel_wide = channel_flat = wide = flat = 0
    if attention:
        dim = attention.head_dim
        group_wide, group_flat = 2 * dim, 2 * dim * attention.in_bias  # k and v rows
        query_wide, query_flat = 2 * dim, dim * attention.in_bias  # q rows and o columns
        wide += attention.out_bias
        if total:
            wide += len(attention.norms)
            if attention.qk_norms and attention.qk_norm_spans_heads:
                group_flat, query_flat = group_flat + dim, query_flat + dim
            elif attention.qk_norms:
                flat += 2 * dim
    if mlp:
        channel_wide, channel_flat = 3, 2 * mlp.in_bias
        wide += mlp.out_bias + (len(mlp.norms) if total else 0)
    return _LayerCost(group_wide, group_flat, query_wide, query_flat, channel_wide, channel_flat, wide, flat)
