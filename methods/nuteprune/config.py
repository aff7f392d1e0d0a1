"""This module has the settings of NutePrune beside those of every learning method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from prunebench.methods.data.training_text import TrainingConfig
from prunebench.methods.learning.config import (
    BatchTokens,
    FinetuneEpochs,
    FinetuneLr,
    LearningConfig,
    LoraLr,
    LoraProjections,
    RampEpochs,
    Text,
)
from prunebench.methods.nuteprune.distillation import KLReduction, LayerScale
from prunebench.methods.nuteprune.snapshots import REACHED_MARGIN, Progression


class NutePruneConfig(LearningConfig):
    """Settings of NutePrune; defaults are the released co-training script's, unless a description says otherwise."""

    text: Text = TrainingConfig(source="c4", max_len=512)
    finetune_text: TrainingConfig | None = Field(
        TrainingConfig(source="alpaca", max_len=512), description="text of the fine-tuning; null: the same as text"
    )
    batch_tokens: BatchTokens = Field(8192, description="tokens of one pack: 16 sequences of 512 in the script")
    mask_only_epochs: float = Field(0.0, ge=0, description="of the pruning epochs, those at the start in which adapters rest")
    ramp_epochs: RampEpochs = Field(1.0, description="of the pruning epochs, those in which the target rises; run names show 4 at 20 %")
    finetune_epochs: FinetuneEpochs = 2.0
    distillation: Progression | Literal["none"] = Field(
        "progressive", description="ablations: 'second_phase' (dense teacher while sparsity rises), 'dense' (always), 'none' (plain loss)"
    )
    gap: int = Field(10, ge=1, description="snapshots between student and teacher")
    spacing: float = Field(0.01, ge=REACHED_MARGIN, lt=1, description="expected sparsity between two snapshots")
    kl_weight: float = Field(0.1, ge=0, description="of the KL between the logits of teacher and student")
    layer_weight: float = Field(0.9, ge=0, description="of the sum of all layers' losses")
    layer_scale: LayerScale = Field(
        "absolute", description="official: mean squared difference of the states; 'relative': by the longer one's length, token by token"
    )
    lm_weight: float = Field(0.0, ge=0, description="of the plain loss, which the official total has not")
    kl_temperature: float = Field(2 / 3, gt=0, description="of both softmaxes; below 1, it sharpens")
    kl_reduction: KLReduction = Field("sequence", description="official: summed over positions; 'token' is the mean over them")
    lora_projections: LoraProjections = Field(
        ("q", "k", "v", "o", "gate", "up", "down"), description="projections that get adapters; the co-training script alone has q and v"
    )
    lora_lr: LoraLr = Field(1e-3, description="learning rate of the adapters; falls to 0 linearly, from the end of the mask-only epochs on")
    finetune_lr: FinetuneLr = Field(1e-4, description="learning rate of the adapters in the fine-tuning; falls to 0 linearly")
    is_uniform: bool = Field(False, description="every layer's groups and channels meet the target on their own; hidden_gates off")

    @model_validator(mode="after")
    def _fits_together(self) -> NutePruneConfig:
        self._check_within_pruning("mask_only_epochs", self.mask_only_epochs)
        if self.distillation != "none" and self.kl_weight == self.layer_weight == self.lm_weight == 0:
            raise ValueError("kl_weight, layer_weight and lm_weight are all 0, so there is no loss; give one, or distillation: none")
        return self
