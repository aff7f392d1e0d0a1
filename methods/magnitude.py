"""Magnitude pruning: units with small weights go."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.allocation import Allocation, UnitScores, allocate, unprotected_layers
from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy, Rows
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks


class MagnitudeConfig(PrunerConfig):
    norm: Literal["l1", "l2"] = Field("l2", description="sum of |w| or of w^2 over a unit's weights (LLM-Pruner's code: no root)")
    members: Literal["output", "all"] = Field(
        "output",
        description="score by the columns of the output projections only (FLAP's mag_sp) or by all members, averaged (LLM-Pruner)",
    )
    allocation: Allocation = Field("uniform", description="same fraction in every layer, or one global ranking")
    protect_first: int = Field(0, ge=0, description="layers at the start that stay whole")
    protect_last: int = Field(0, ge=0, description="layers at the end that stay whole")


@register("magnitude")
class Magnitude(Pruner[MagnitudeConfig]):
    """Structured magnitude pruning of KV groups (with their query heads) and MLP channels; needs no data.

    Source: FLAP's baseline mag_sp (columns of o_proj and down_proj), and LLM-Pruner's L1 and L2 baselines
    (arXiv 2305.11627, section 4.2), which average over the matrices of a group.
    """

    Config = MagnitudeConfig
    needs_calibration = False

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        anatomy = Anatomy.from_model(model)
        layers = unprotected_layers(anatomy, self.config.protect_first, self.config.protect_last)
        scores = magnitude_scores(model, anatomy, norm=self.config.norm, members=self.config.members)
        return allocate(anatomy, budget, scores, allocation=self.config.allocation, layers=layers)


@torch.no_grad()
def magnitude_scores(
    model: PreTrainedModel, anatomy: Anatomy, *, norm: Literal["l1", "l2"], members: Literal["output", "all"]
) -> UnitScores:
    """Sum of |w|^p over the weights of every unit, averaged over the matrices that take part.

    Args:
        members: "output" reads o_proj and down_proj columns; "all" reads q, k, v rows and o columns, gate and up rows and
            down columns.
    """

    def powers(module: str) -> Tensor:  # (out, in), float32
        weight = cast(Tensor, model.get_submodule(module).weight).detach().float()
        return weight.abs() if norm == "l1" else weight.square()

    def rows(site: Rows) -> Tensor:  # (site.count,)
        return powers(site.module)[site.start : site.start + site.count].sum(1)

    groups, channels = [], []
    for layer in anatomy.layers:
        if layer.attention:
            part = layer.attention
            matrices = [powers(part.o).sum(0)] + ([rows(s) for s in (part.q, part.k, part.v)] if members == "all" else [])
            by_group = [matrix.view(part.num_kv_groups, -1).sum(1) for matrix in matrices]  # (num_kv_groups,)
            groups.append(torch.stack(by_group).mean(0).cpu())
        else:
            groups.append(torch.zeros(0))
        if layer.mlp:
            matrices = [powers(layer.mlp.down).sum(0)]
            matrices += [rows(s) for s in (layer.mlp.gate, layer.mlp.up)] if members == "all" else []
            channels.append(torch.stack(matrices).mean(0).cpu())
        else:
            channels.append(torch.zeros(0))
    return UnitScores(tuple(groups), tuple(channels))
