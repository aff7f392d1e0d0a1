"""This module has the settings that every method which learns its masks shares; a method's own config subclasses them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prunebench.methods.data.training_text import TrainingConfig
from prunebench.methods.learning.gates.gates import GateKinds
from prunebench.methods.learning.gates.hardening import Survivors
from prunebench.methods.learning.gates.schedule import Ramp
from prunebench.methods.learning.run.adapters import Projection
from prunebench.methods.learning.text.precision import DESCRIPTION as PRECISION
from prunebench.methods.learning.text.precision import ComputeDtype
from prunebench.methods.pruner import PrunerConfig
from prunebench.models.anatomy import Anatomy
from prunebench.models.gating.soft_masks import MLPPlacement

Draws = Literal["example", "pack"]

# The types of the settings whose default differs between methods: a subclass states `lora_lr: LoraLr = 1e-3`, and description and
# range stay those of here.
Text = Annotated[
    TrainingConfig,
    Field(
        description="text that gates and adapters learn from: a named source, 'calibration' (the grid's calibration samples) or 'self' "
        "(the model writes it, LLM-QAT style); the paper of Compresso has GPT4-Alpaca"
    ),
]
BatchTokens = Annotated[
    int, Field(ge=8, description="tokens of one pack of examples, the prompt that they share included; Compresso's script: one example")
]
RampEpochs = Annotated[float, Field(ge=0, description="of the pruning epochs, those at the start in which the target sparsity rises")]
FinetuneEpochs = Annotated[
    float, Field(ge=0, description="epochs of LoRA alone, after the gates are decided; 0 leaves it to the grid's recovery")
]
LoraProjections = Annotated[tuple[Projection, ...], Field(min_length=1, description="projections that get adapters, in every layer")]
LoraLr = Annotated[float, Field(gt=0, description="learning rate of the adapters until the gates are decided; falls to 0, linearly")]
FinetuneLr = Annotated[float, Field(gt=0, description="learning rate of the adapters in the fine-tuning, where it falls to 0")]


class LearningConfig(PrunerConfig):
    """Settings of a method that learns hard-concrete gates and LoRA adapters on a frozen model.

    All stages are counted in epochs, which may be fractions, and rates are AdamW's, without weight decay. A subclass adds its
    own settings and states the defaults in which it differs.

    Source of the defaults: the released script of Compresso for LLaMA-7B (arXiv 2310.05015), of whose code NutePrune's
    (arXiv 2402.09773) is a fork; a description says so where a default is ours.
    """

    text: Text = TrainingConfig(source="alpaca", max_len=1024)
    self_text_examples: int = Field(512, ge=1, description="texts of text.max_len tokens to write, for the source 'self'; ours")
    batch_tokens: BatchTokens = 1024
    steps_per_epoch: int | None = Field(None, ge=1, description="packs; None: one pass over the text. Shrinks or stretches all stages")
    pruning_epochs: float = Field(7.0, gt=0, description="epochs in which gates, multipliers and adapters learn together")
    ramp_epochs: RampEpochs = 4.0
    finetune_epochs: FinetuneEpochs = 3.0
    ramp: Ramp = Field("linear", description="how the target rises; 'cubic' is what Compresso's paper is reported to use")
    lora_rank: int = Field(8, ge=0, description="rank of the adapters; 0: none, only gates and multipliers learn")
    lora_alpha: float = Field(8.0, gt=0, description="the adapters are scaled by alpha / rank")
    lora_projections: LoraProjections = ("q", "v")
    lora_lr: LoraLr = 5e-5
    finetune_lr: FinetuneLr = 4e-4
    mask_lr: float = Field(0.1, gt=0, description="learning rate of the gates' log-alpha, constant")
    head_mask_lr: float | None = Field(
        None,
        gt=0,
        description="that of the gates on heads; None: mask_lr. In short runs heads close before channels do; slow them",
    )
    multiplier_lr: float = Field(0.1, gt=0, description="rate at which both multipliers ascend, constant")
    lambda2_start: float = Field(
        0.0,
        ge=0,
        description="quadratic multiplier at the start; a short run needs one that grows with its losses",
    )
    temperature: float = Field(2 / 3, gt=0, description="of the hard-concrete gates")
    gate_draws: Draws = Field(
        "pack",
        description="'example': each example of a pack, and a shared prompt, meets its own draw of the gates, as in Compresso's batches of "
        "one; 'pack': all meet one, as NutePrune's 16 sequences do",
    )
    hidden_gates: bool = Field(True, description="one vector of gates on the residual width, for all layers together")
    mlp_gate_placement: MLPPlacement = Field(
        "product",
        description="channel gates on the down projection's input (linear for soft gates); 'branches' is the official code's",
    )
    survivors: Survivors = Field("soft", description="gates that stay keep their soft value (official) or become 1 ('hard')")
    compute_dtype: ComputeDtype = Field("model", description=f"{PRECISION}; ours")
    checkpoint_every: int = Field(50, ge=1, description="steps between two checkpoints of the training state; ours")

    @model_validator(mode="after")
    def _ramp_ends(self) -> LearningConfig:
        self._check_within_pruning("ramp_epochs", self.ramp_epochs)
        return self

    def _check_within_pruning(self, name: str, epochs: float) -> None:
        if epochs > self.pruning_epochs:
            raise ValueError(f"{name} = {epochs:g} is not accepted: give at most pruning_epochs, {self.pruning_epochs:g}")

    def gate_kinds(self, anatomy: Anatomy) -> GateKinds:
        """Says which units of a model get gates; a method with settings for more kinds overrides it."""
        return GateKinds(hidden=self.hidden_gates)

    def training_tokens(self, warmup_epochs: float = 0.0) -> int | None:
        """Counts the tokens of a whole run, for `Pruner.training_tokens`; None where the text's length decides.

        Args:
            warmup_epochs: of LoRA alone before the pruning epochs.
        """
        epochs = self.pruning_epochs + (warmup_epochs + self.finetune_epochs if self.lora_rank else 0)
        return None if self.steps_per_epoch is None else round(epochs * self.steps_per_epoch * self.batch_tokens)
