"""NutePrune as a pruning method: its settings and its stages."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.calibration.training_text import TrainingConfig
from prunebench.methods.data import PruningData
from prunebench.methods.nuteprune.distillation import KLReduction, LayerScale
from prunebench.methods.nuteprune.published_count import published_sparsity_of
from prunebench.methods.nuteprune.snapshots import REACHED_MARGIN, Progression, SnapshotManager
from prunebench.methods.nuteprune.teaching import Distill, TaughtLearner
from prunebench.methods.pruner import CountPrompt, Pruner, PrunerConfig, Run, Support
from prunebench.methods.registry import register
from prunebench.methods.training.adapters import Projection
from prunebench.methods.training.gates import GateKinds
from prunebench.methods.training.hardening import Survivors
from prunebench.methods.training.learner import DRAWS, Draws, LearnerSettings
from prunebench.methods.training.loop import run_stages
from prunebench.methods.training.packing import Pack, lm_loss
from prunebench.methods.training.precision import DESCRIPTION as PRECISION
from prunebench.methods.training.precision import ComputeDtype
from prunebench.methods.training.schedule import Ramp
from prunebench.methods.training.source_text import fingerprint, text_to_learn
from prunebench.methods.training.stages import HEAD_MASK_LR, FineTune
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import BadInput
from prunebench.models.masks import Masks

log = logging.getLogger(__name__)

ALL_SEVEN: tuple[Projection, ...] = ("q", "k", "v", "o", "gate", "up", "down")


class NutePruneConfig(PrunerConfig):
    """Defaults are the released co-training script's (spec section 6), unless a description says otherwise."""

    text: TrainingConfig = Field(
        TrainingConfig(source="c4", max_len=512),
        description="text of the pruning stages; besides the named sources, 'calibration' (the grid's samples) and 'self'",
    )
    finetune_text: TrainingConfig | None = Field(
        TrainingConfig(source="alpaca", max_len=512), description="text of the fine-tuning; null: the same as text"
    )
    self_text_examples: int = Field(512, ge=1, description="texts to write, for the source 'self'")
    batch_tokens: int = Field(8192, ge=8, description="tokens of a step: 16 sequences of 512")
    steps_per_epoch: int | None = Field(None, ge=1, description="None: one pass over the text; a number shrinks or stretches all stages")
    mask_only_epochs: float = Field(0.0, ge=0, description="of the pruning epochs, those at the start in which adapters rest")
    pruning_epochs: float = Field(7.0, gt=0, description="co-training of gates, multipliers and adapters")
    ramp_epochs: float = Field(1.0, ge=0, description="of the pruning epochs, those in which the target rises; run names show 4 at 20 %")
    finetune_epochs: float = Field(2.0, ge=0, description="LoRA on the plain loss after the gates are decided; 0 leaves it to the grid")
    ramp: Ramp = "linear"
    distillation: Progression | Literal["none"] = Field(
        "progressive", description="ablations: 'second_phase' (dense teacher while sparsity rises), 'dense' (always), 'none' (plain loss)"
    )
    gap: int = Field(10, ge=1, description="snapshots between student and teacher")
    spacing: float = Field(0.01, ge=REACHED_MARGIN, lt=1, description="sparsity between two snapshots")
    kl_weight: float = Field(0.1, ge=0)
    layer_weight: float = Field(0.9, ge=0)
    layer_scale: LayerScale = Field(
        "absolute", description="official: mean squared difference of the states; 'relative': by the longer one's length, token by token"
    )
    lm_weight: float = Field(0.0, ge=0, description="the official total has no plain loss")
    kl_temperature: float = Field(2 / 3, gt=0, description="below 1: it sharpens")
    kl_reduction: KLReduction = Field("sequence", description="official: summed over positions; 'token' is the mean over them")
    lora_rank: int = Field(8, ge=0, description="0: gates only, the paper's mask-only stage")
    lora_alpha: float = Field(8.0, gt=0)
    lora_projections: tuple[Projection, ...] = Field(ALL_SEVEN, min_length=1, description="the co-training script alone has q and v")
    lora_lr: float = Field(1e-3, gt=0, description="falls to 0 linearly, from the end of the mask-only epochs on")
    finetune_lr: float = Field(1e-4, gt=0, description="falls to 0 linearly")
    mask_lr: float = Field(0.1, gt=0)
    head_mask_lr: float | None = Field(None, gt=0, description=HEAD_MASK_LR)
    multiplier_lr: float = Field(0.1, gt=0)
    lambda2_start: float = Field(
        0.0, ge=0, description="quadratic multiplier at the start (official: 0); a short run needs one that grows with its losses"
    )
    temperature: float = Field(2 / 3, gt=0, description="of the hard-concrete gates")
    gate_draws: Draws = Field("pack", description=f"{DRAWS}; the official code has one draw for 16 sequences")
    hidden_gates: bool = True
    is_uniform: bool = Field(False, description="every layer's groups and channels meet the target on their own; hidden_gates off")
    mlp_gate_placement: Literal["product", "branches"] = Field("product", description="'branches' is the official code's")
    survivors: Survivors = "soft"
    compute_dtype: ComputeDtype = Field("model", description=PRECISION)
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints of the training state")

    @model_validator(mode="after")
    def _fits_together(self) -> NutePruneConfig:
        for name, epochs in (("ramp_epochs", self.ramp_epochs), ("mask_only_epochs", self.mask_only_epochs)):
            if epochs > self.pruning_epochs:
                raise ValueError(f"{name} = {epochs:g} is not accepted: give at most pruning_epochs, {self.pruning_epochs:g}")
        if self.distillation != "none" and self.kl_weight == self.layer_weight == self.lm_weight == 0:
            raise ValueError("kl_weight, layer_weight and lm_weight are all 0, so there is no loss; give one, or distillation: none")
        return self


@register("nuteprune")
class NutePrune(Pruner[NutePruneConfig]):
    """Learns gates by distillation from snapshots of the model's own, denser past, kept as gates and adapters on one model.

    Source: NutePrune, arXiv 2402.09773, and its released code. Departures: KV groups instead of query heads; sparsity counted on
    the budget's basis (the paper's own count is logged as `published_sparsity`); losses in float32; a loss that is not finite
    stops the run; packed sequences; the landing on the budget and folding of `methods.training`.
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
        epochs = config.pruning_epochs + (config.finetune_epochs if config.lora_rank else 0)
        return None if config.steps_per_epoch is None else round(epochs * config.steps_per_epoch * config.batch_tokens)

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
        settings = LearnerSettings(
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            projections=config.lora_projections,
            kinds=GateKinds(hidden=config.hidden_gates),
            temperature=config.temperature,
            mlp_placement=config.mlp_gate_placement,
            survivors=config.survivors,
            batch_tokens=config.batch_tokens,
            is_uniform=config.is_uniform,
            compute_dtype=config.compute_dtype,
            lambda2_start=config.lambda2_start,
            draws=config.gate_draws,
        )
        learner = TaughtLearner(model, settings, budget, text.train, run.seed, run.device)
        mark = fingerprint(config, budget, run.seed, [*text.train, *later.train])
        learner.teachers = SnapshotManager(
            run.folder,
            mark,
            budget.sparsity,
            config.spacing,
            config.gap,
            "dense" if config.distillation == "none" else config.distillation,
        )
        with torch.enable_grad(), learner:
            epoch = config.steps_per_epoch or learner.sampler.packs_per_epoch
            distill = Distill(
                learner,
                distils=config.distillation != "none",
                kl_weight=config.kl_weight,
                layer_weight=config.layer_weight,
                lm_weight=config.lm_weight,
                kl_temperature=config.kl_temperature,
                kl_reduction=config.kl_reduction,
                layer_scale=config.layer_scale,
                mask_only_steps=round(config.mask_only_epochs * epoch),
                pruning_steps=max(1, round(config.pruning_epochs * epoch)),
                ramp_steps=round(config.ramp_epochs * epoch),
                ramp=config.ramp,
                lora_lr=config.lora_lr,
                mask_lr=config.mask_lr,
                head_mask_lr=config.head_mask_lr,
                multiplier_lr=config.multiplier_lr,
            )

            def loss(pack: Pack) -> Tensor:
                return lm_loss(model, pack)

            finetune = FineTune(
                learner,
                loss,
                steps=round(config.finetune_epochs * epoch) if config.lora_rank else 0,
                lora_lr=config.finetune_lr,
                decay="linear",
                accumulation=1,
                examples=later.train,
                validation=later.validation,
            )
            run_stages([distill, finetune], learner, run, fingerprint=mark, checkpoint_every=config.checkpoint_every)
            log.info("nuteprune learnt its masks on %d tokens, %d snapshots", learner.tokens_seen, learner.teachers.stored)
            masks = learner.finish()
            run.log_metrics(distill.steps + finetune.steps, {"published_sparsity": published_sparsity_of(learner.anatomy, masks)})
            return masks
