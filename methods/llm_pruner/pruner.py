"""LLM-Pruner as a pruning method: strategies, allocation and iterative steps."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.allocation import Allocation, UnitScores, allocate, lowest, unprotected_layers
from prunebench.methods.data import PruningData
from prunebench.methods.llm_pruner.counts import paper_counts, prune_depth, prune_width
from prunebench.methods.llm_pruner.groups import BlockGroups, Reduction, hidden_sites, reduce_members
from prunebench.methods.llm_pruner.taylor import Importance, score_sites
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.masks import Masks


class LLMPrunerConfig(PrunerConfig):
    importance: Importance = Field(
        "first", description="vector |sum wg|, first sum|wg| (Element^1), second sum w^2 F (Element^2), mix |wg - w^2 F / 2|; code default"
    )
    reduction: Reduction = Field("sum", description="over the matrices of a group; 'last' is the paper's last-only (o_proj, down_proj)")
    strategy: Literal["block", "channel", "layer"] = Field(
        "block", description="heads and MLP channels (the paper's best), residual width, or the first layers only"
    )
    allocation: Allocation = Field("uniform", description="block-wise: the same fraction in every layer, or one global ranking")
    protect_first: int | None = Field(None, ge=0, description="layers at the start that stay whole; None: an eighth (4 of LLaMA-7B's 32)")
    protect_last: int | None = Field(None, ge=0, description="layers at the end that stay whole; None: a sixteenth (2 of 32)")
    local_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the paper's ratio of each pruned layer, rounded as its code does; None: from the budget, which it must meet",
    )
    iterative_steps: int = Field(1, ge=1, le=1000, description="the budget is reached linearly, with new gradients at each step")
    batch_size: int = Field(10, ge=1, description="samples of one backward pass; the paper's whole set")


@register("llm_pruner")
class LLMPruner(Pruner[LLMPrunerConfig]):
    """Removes the coupled groups whose loss hurts least by a Taylor expansion of the loss.

    Source: LLM-Pruner, arXiv 2305.11627, sections 3.1-3.2, and its official code where the paper is silent. Departures:
    query heads of a KV group are aligned as they are removed (the code's slip); the budget is met to the nearest channel
    (`solve_uniform`), unless `local_fraction` asks for the code's own rounding; a global ranking goes by score per parameter.
    """

    Config = LLMPrunerConfig

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        anatomy = Anatomy.from_model(model)
        if self.config.strategy == "layer":
            return prune_depth(anatomy, budget)
        samples = data.require_calibration("llm_pruner", model)
        masks = None
        for step in range(1, self.config.iterative_steps + 1):
            progress = step / self.config.iterative_steps
            share = Budget(budget.sparsity * progress, budget.basis)
            with nullcontext() if masks is None else apply_masks(model, anatomy, masks):
                if self.config.strategy == "channel":
                    masks = prune_width(anatomy, share, self._hidden_scores(model, anatomy, samples, run, masks))
                else:
                    masks = self._prune_blocks(model, anatomy, share, progress, samples, run, masks)
        assert masks is not None  # there is at least one step
        return masks

    def _prune_blocks(
        self, model: PreTrainedModel, anatomy: Anatomy, budget: Budget, progress: float, samples: Tensor, run: Run, earlier: Masks | None
    ) -> Masks:
        num_layers, config = len(anatomy.layers), self.config
        first = num_layers // 8 if config.protect_first is None else config.protect_first
        last = num_layers // 16 if config.protect_last is None else config.protect_last
        layers = unprotected_layers(anatomy, first, last)
        groups = BlockGroups.of(anatomy, layers)
        score_sites(model, groups.sites, samples, config.importance, batch_size=config.batch_size, progress=run.progress)
        scores = groups.scores(anatomy, config.reduction)
        if earlier is not None:  # what is gone stays gone: lower than any score
            scores = UnitScores(_without(scores.kv_groups, earlier.kv_groups), _without(scores.ffn, earlier.ffn))
        if config.local_fraction is None:
            return allocate(anatomy, budget, scores, allocation=config.allocation, layers=layers)
        kept_groups = [torch.ones_like(score, dtype=torch.bool) for score in scores.kv_groups]
        kept_channels = [torch.ones_like(score, dtype=torch.bool) for score in scores.ffn]
        for i, counts in paper_counts(anatomy, config.local_fraction * progress, layers).items():
            kept_groups[i][lowest(scores.kv_groups[i], counts.kv_groups)] = False
            kept_channels[i][lowest(scores.ffn[i], counts.channels)] = False
        return Masks.of(anatomy, kv_groups=kept_groups, ffn=kept_channels)

    def _hidden_scores(self, model: PreTrainedModel, anatomy: Anatomy, samples: Tensor, run: Run, earlier: Masks | None) -> Tensor:
        sites = hidden_sites(anatomy)
        score_sites(model, sites, samples, self.config.importance, batch_size=self.config.batch_size, progress=run.progress)
        scores = reduce_members(torch.stack([site.score for site in sites]), self.config.reduction)
        return scores if earlier is None else _without((scores,), (earlier.hidden,))[0]


def _without(scores: tuple[Tensor, ...], kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(score.masked_fill(~mask, -1.0) for score, mask in zip(scores, kept, strict=True))
