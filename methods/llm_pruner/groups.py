"""The coupled groups of a decoder and how the scores of their members become one score a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunebench.methods.allocation import UnitScores
from prunebench.methods.llm_pruner.taylor import Site
from prunebench.models.anatomy import Anatomy, Layer, Rows

Reduction = Literal["sum", "mean", "max", "prod", "first", "last"]


@dataclass(frozen=True)
class Members:
    """Sites of the matrices that lose an index together, root first, deepest last.

    Attributes:
        sites: for attention q, k, v (rows), o (columns); for the MLP gate, up (rows), down (columns).
        groups: number of groups that the indices fall into; 0 where the sub-layer is absent or protected.
    """

    sites: tuple[Site, ...]
    groups: int

    def scores(self, reduction: Reduction) -> Tensor:
        """(groups,) float64, larger means keep.

        The members of an index are reduced first, then the indices of a group are summed, as in the released code. With grouped
        queries q and o hold q_heads_per_group times as many indices as k and v; index d of a group then means d of all its
        query heads, which are contiguous (transformers' `repeat_kv`). The official code adds up heads j, j + G, ...
        instead, which are not those that go.
        """
        aligned = [self._aligned(site) for site in self.sites]
        return reduce_members(torch.stack(aligned), reduction).sum(-1)

    def _aligned(self, site: Site) -> Tensor:
        """(groups, indices a group), query heads of one group added up."""
        width = min(other.count for other in self.sites) // self.groups
        return site.score.view(self.groups, -1, width).sum(1)  # (groups, query heads a group, width) -> (groups, width)


def reduce_members(scores: Tensor, reduction: Reduction) -> Tensor:
    """(members, ...) -> (...): over the matrices of a coupled structure; "first" is its root, "last" its deepest member."""
    if reduction == "sum":
        return scores.sum(0)
    if reduction == "mean":
        return scores.mean(0)
    if reduction == "max":
        return scores.amax(0)
    if reduction == "prod":
        return scores.prod(0)
    return scores[0] if reduction == "first" else scores[-1]


@dataclass(frozen=True)
class BlockGroups:
    """KV groups and MLP channels of the layers that may be pruned ("block-wise")."""

    attention: dict[int, Members]
    mlp: dict[int, Members]

    @classmethod
    def of(cls, anatomy: Anatomy, layers: list[int]) -> BlockGroups:
        attention, mlp = {}, {}
        for i in layers:
            part, gated = anatomy.layers[i].attention, anatomy.layers[i].mlp
            if part:
                sites = [_rows(site) for site in (part.q, part.k, part.v)]
                attention[i] = Members((*sites, Site(f"{part.o}.weight", 0, part.q.count, "columns")), part.num_kv_groups)
            if gated:
                sites = [_rows(gated.gate), _rows(gated.up)]
                mlp[i] = Members((*sites, Site(f"{gated.down}.weight", 0, gated.width, "columns")), gated.width)
        return cls(attention, mlp)

    @property
    def sites(self) -> list[Site]:
        return [site for members in (*self.attention.values(), *self.mlp.values()) for site in members.sites]

    def scores(self, anatomy: Anatomy, reduction: Reduction) -> UnitScores:
        """Scores of all layers; those of layers that may not be pruned are zero and must not be read."""
        sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
        groups = [self.attention[i].scores(reduction) if i in self.attention else torch.zeros(sizes[i][1]) for i in range(len(sizes))]
        channels = [self.mlp[i].scores(reduction) if i in self.mlp else torch.zeros(sizes[i][2]) for i in range(len(sizes))]
        return UnitScores(tuple(groups), tuple(channels))


def hidden_sites(anatomy: Anatomy) -> list[Site]:
    """Every slice that goes with one dimension of the residual stream ("channel-wise"); a tied embedding is one member,
    since the gradients of both its uses add up in it."""
    hidden = anatomy.hidden_size
    paths = [(anatomy.embedding, "columns"), (anatomy.final_norm, "entries")]
    if not anatomy.is_tied:
        paths.append((anatomy.head, "columns"))
    for layer in anatomy.layers:
        paths += _hidden_of_layer(layer)
    return [Site(f"{path}.weight", 0, hidden, by) for path, by in dict.fromkeys(paths)]  # type: ignore[arg-type]


def _hidden_of_layer(layer: Layer) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in (layer.attention, layer.mlp):
        if part is not None:
            found += [(norm, "entries") for norm in part.norms]
    if layer.attention:
        found += [(rows.module, "columns") for rows in (layer.attention.q, layer.attention.k, layer.attention.v)]
        found.append((layer.attention.o, "rows"))
    if layer.mlp:
        found += [(rows.module, "columns") for rows in (layer.mlp.gate, layer.mlp.up)]
        found.append((layer.mlp.down, "rows"))
    return found


def _rows(site: Rows) -> Site:
    return Site(f"{site.module}.weight", site.start, site.count, "rows")
