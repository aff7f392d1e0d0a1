"""Random pruning: the floor that every method must beat."""

from __future__ import annotations

import torch
from pydantic import Field
from transformers import PreTrainedModel

from prunebench.methods.allocation import UnitScores, allocate, unprotected_layers
from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks


class RandomConfig(PrunerConfig):
    protect_first: int = Field(0, ge=0, description="layers at the start that stay whole")
    protect_last: int = Field(0, ge=0, description="layers at the end that stay whole")


@register("random")
class Random(Pruner[RandomConfig]):
    """The same fraction of KV groups and MLP channels in every layer, drawn uniformly; average several seeds."""

    Config = RandomConfig
    needs_calibration = False

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        anatomy = Anatomy.from_model(model)
        generator = run.generator()
        sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
        scores = UnitScores(
            tuple(torch.rand(groups, generator=generator) for _, groups, _ in sizes),
            tuple(torch.rand(channels, generator=generator) for _, _, channels in sizes),
        )
        layers = unprotected_layers(anatomy, self.config.protect_first, self.config.protect_last)
        return allocate(anatomy, budget, scores, layers=layers)
