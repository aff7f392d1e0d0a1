"""This module has NutePrune as a pruning method: its stages; docs/methods/nuteprune.md has the formulas."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.data.training_text import TrainingConfig
from prunebench.methods.learning.run.stages import FineTune
from prunebench.methods.learning.text.source_text import text_to_learn
from prunebench.methods.nuteprune.config import NutePruneConfig
from prunebench.methods.nuteprune.published_count import published_sparsity_of
from prunebench.methods.nuteprune.teaching import Distill, TaughtLearner
from prunebench.methods.pruner import CountPrompt, Pruner, Run, Support
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import BadInput
from prunebench.models.masks import Masks


@register("nuteprune")
class NutePrune(Pruner[NutePruneConfig]):
    """Learns gates by distillation from snapshots of the model's own, denser past, kept as gates and adapters on one model.

    Source: NutePrune, arXiv 2402.09773, and its released code. docs/methods/nuteprune.md goes through it equation by equation,
    with every departure: KV groups instead of query heads, sparsity on the budget's basis (the paper's own count is logged as
    `published_sparsity`), losses in float32, a stop where one is not finite, packed sequences, an exact landing.
    """

    Config = NutePruneConfig

    @classmethod
    def quick_config(cls) -> NutePruneConfig:
        return NutePruneConfig(
            text=TrainingConfig(source="calibration"),
            finetune_text=None,
            batch_tokens=64,
            steps_per_epoch=1,
            mask_lr=1.0,
            lora_rank=2,
            lora_projections=("q", "v"),
            gap=1,
            spacing=0.02,
        )

    def supports(self, anatomy: Anatomy) -> Support:
        if self.config.is_uniform and self.config.hidden_gates:
            return Support.no("is_uniform holds each layer to the target on its own, which needs hidden_gates: false.")
        return Support.yes()

    def training_tokens(self) -> int | None:
        config: NutePruneConfig = self.config
        return config.training_tokens()

    def lengths(self, seq_len: int, prompt_tokens: CountPrompt) -> dict[str, int]:
        lengths = super().lengths(seq_len, prompt_tokens)
        if not self._tunes_on_other_text:
            lengths.pop("finetune_text.max_len", None)
        return lengths

    @property
    def _tunes_on_other_text(self) -> bool:
        config: NutePruneConfig = self.config
        return config.finetune_text is not None and bool(config.finetune_epochs and config.lora_rank)

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        config: NutePruneConfig = self.config
        if model.dtype == torch.float16:
            raise BadInput("dtype: float16 is too coarse for the gradients of nuteprune's layer loss; use bfloat16 or float32.")
        text = text_to_learn(config.text, config.self_text_examples, model, data, run)
        later = text
        if config.finetune_text is not None and self._tunes_on_other_text:
            later = text_to_learn(config.finetune_text, config.self_text_examples, model, data, run)
        learner = TaughtLearner(model, config, budget, text, run, later=later, is_uniform=config.is_uniform)
        distill, finetune = Distill(learner), FineTune(learner, decay="linear")
        with learner:
            masks = learner.learn(distill, finetune)
        run.log_metrics(distill.steps + finetune.steps, {"published_sparsity": published_sparsity_of(learner.anatomy, masks)})
        return masks
