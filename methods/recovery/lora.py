"""The one fair recovery: LoRA on the sliced model, merged at the end; a run that is killed goes on and ends the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData, TrainingConfig
from prunebench.methods.layerwise import recomputed_layers
from prunebench.methods.learning.run.adapters import Adapters, Projection
from prunebench.methods.learning.run.loop import Learner, Stage, run_stages
from prunebench.methods.learning.run.state import load_optimizer, optimizer_tensors
from prunebench.methods.learning.text.packed_attention import packed_attention
from prunebench.methods.learning.text.packing import Pack, lm_loss
from prunebench.methods.learning.text.precision import DESCRIPTION as PRECISION
from prunebench.methods.learning.text.precision import ComputeDtype, computing_in, frozen_weights_in
from prunebench.methods.pruner import Run
from prunebench.methods.recovery.batches import BatchPlan, packed
from prunebench.methods.recovery.recovery import Recovery, RecoveryConfig
from prunebench.methods.registry import register_recovery
from prunebench.models.anatomy import Anatomy


class LoraRecoveryConfig(RecoveryConfig):
    """Holds the settings of the recovery `lora`. Defaults: the recipe of LLM-Pruner's code.

    Departures: no dropout in the adapters, warm-up of at most a tenth of the steps, packed rows instead of padding.
    """

    text: TrainingConfig = Field(TrainingConfig(), description="training text: source, cut-off length, held-out examples")
    token_budget: int | None = Field(None, ge=1, description="training tokens, prompts included; None: `epochs` passes over the text")
    epochs: int = Field(2, ge=1, description="passes over the text where there is no token_budget")
    batch_size: int = Field(64, ge=1, description="examples of one optimiser step")
    pack_tokens: int = Field(1024, ge=8, description="tokens of one packed row; memory, not the result")
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    projections: tuple[Projection, ...] = Field(("q", "k", "v", "o", "gate", "up", "down"), min_length=1)
    learning_rate: float = Field(1e-4, gt=0, description="AdamW, peak; rises for warmup_steps, then falls linearly to 0")
    warmup_steps: int = Field(100, ge=0, description="optimiser steps, at most a tenth of all")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0, description="gradients longer than this are shortened to it")
    validate_every: int = Field(100, ge=1, description="optimiser steps between two validations; there is one before and one at the end")
    select: Literal["best", "last"] = Field("best", description="adapters of the lowest validation loss, or of the last step")
    compute_dtype: ComputeDtype = Field("model", description=PRECISION)
    recompute: bool = Field(False, description="compute activations again in the backward pass: less memory, a third more time")
    checkpoint_every: int = Field(20, ge=1, description="optimiser steps between two checkpoints of the training itself")


@dataclass(frozen=True)
class Recovered:
    """What a recovery did: training tokens, steps, and mean validation loss (nats a label token) before and after."""

    tokens: int
    steps: int
    validation_before: float
    validation_after: float
    text: str
    text_sha256: str


def recover_lora(model: PreTrainedModel, config: LoraRecoveryConfig, data: PruningData, run: Run) -> Recovered:
    """Trains LoRA adapters on `model` and merges them into its weights, in place.

    Every method of a grid seed gets the same examples in the same order, and the same number of tokens.

    Raises:
        BadInput: the training text can't be had or is too small.
        TrainingDiverged: a loss is not finite; says at which step.
    """
    text = data.training_text(config.text, model)
    plan = BatchPlan.of(
        text.train,
        batch_size=config.batch_size,
        epochs=config.epochs,
        token_budget=config.token_budget,
        pack_tokens=config.pack_tokens,
        seed=data.seed,
    )
    anatomy = Anatomy.from_model(model)
    fingerprint = _fingerprint(model, config, text.sha256, run.seed)
    adapters = Adapters(model, anatomy, rank=config.rank, alpha=config.alpha, projections=config.projections, generator=run.generator())
    learner = _Learner(adapters)
    stage = _Finetune(model, config, plan, packed(text.validation, config.pack_tokens), learner)
    with packed_attention(model), frozen_weights_in(config.compute_dtype, model):
        run_stages([stage], learner, run, fingerprint=fingerprint, checkpoint_every=config.checkpoint_every)
    if config.select == "best":
        adapters.load(learner.best)
    adapters.merge()
    return Recovered(plan.num_tokens, stage.steps, learner.first_loss, learner.final_loss(config.select), text.description, text.sha256)


class _Learner(Learner):
    """The adapters, the best of them so far, and the validation losses."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self.best = {name: tensor.clone() for name, tensor in adapters.tensors().items()}
        self.losses: list[float] = []

    @property
    def first_loss(self) -> float:
        return self.losses[0]

    def final_loss(self, select: Literal["best", "last"]) -> float:
        return min(self.losses) if select == "best" else self.losses[-1]

    def record(self, loss: float) -> None:
        self.losses.append(loss)
        if loss <= min(self.losses):
            self.best = {name: tensor.clone() for name, tensor in self.adapters.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.adapters.tensors()) | {f"best.{name}": tensor for name, tensor in self.best.items()}

    def facts(self) -> dict[str, Any]:
        return {"validation_losses": self.losses}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.adapters.load({name: tensor for name, tensor in tensors.items() if not name.startswith("best.")})
        devices = {name: tensor.device for name, tensor in self.adapters.tensors().items()}
        self.best = {name: tensors[f"best.{name}"].to(device) for name, device in devices.items()}
        self.losses = list(facts["validation_losses"])


class _Finetune(Stage):
    name = "recovery"

    def __init__(
        self, model: PreTrainedModel, config: LoraRecoveryConfig, plan: BatchPlan, validation: Sequence[Pack], learner: _Learner
    ) -> None:
        self.steps = len(plan.steps)
        self._model, self._config, self._plan, self._validation, self._learner = model, config, plan, validation, learner
        self._parameters = list(learner.adapters.parameters.values())

    def enter(self) -> None:
        self._optimizer = torch.optim.AdamW(self._parameters, lr=self._config.learning_rate, weight_decay=self._config.weight_decay)

    def step(self, step: int) -> dict[str, float]:
        values = {}
        if step == 0:
            values["validation_loss"] = self._validate()  # adapters do nothing yet: the loss of the pruned model
        rate = self._learning_rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        packs = self._plan.packs(step)
        labels = sum(len(pack.targets) for pack in packs)
        loss = 0.0
        with torch.enable_grad():
            for pack in packs:
                with recomputed_layers(self._model) if self._config.recompute else nullcontext():
                    part = self._loss(pack) * (len(pack.targets) / labels)
                    part.backward()
                loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        values |= {"loss": loss, "learning_rate": rate}
        if (step + 1) % self._config.validate_every == 0 or step + 1 == self.steps:
            values["validation_loss"] = self._validate()
        return values

    def _learning_rate(self, step: int) -> float:
        warmup = min(self._config.warmup_steps, self.steps // 10)
        if step < warmup:
            return self._config.learning_rate * (step + 1) / warmup
        return self._config.learning_rate * (self.steps - step) / max(self.steps - warmup, 1)

    def _loss(self, pack: Pack) -> Tensor:
        with computing_in(self._config.compute_dtype, self._model.device):
            return lm_loss(self._model, pack)

    @torch.no_grad()
    def _validate(self) -> float:
        labels = sum(len(pack.targets) for pack in self._validation)
        loss = sum(float(self._loss(pack)) * (len(pack.targets) / labels) for pack in self._validation)
        self._learner.record(loss)
        return loss

    def tensors(self) -> dict[str, Tensor]:
        return optimizer_tensors(self._optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        load_optimizer(self._optimizer, tensors)


def _fingerprint(model: PreTrainedModel, config: LoraRecoveryConfig, text_sha256: str, seed: int) -> str:
    """Of everything that decides the outcome: settings, text, seed and the weights to start from (their shapes and sums)."""
    digest = hashlib.sha256(f"{config.model_dump_json()}|{text_sha256}|{seed}".encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.detach().double().sum().item()!r}".encode())
    return digest.hexdigest()


@register_recovery("lora")
class Lora(Recovery):
    """Trains LoRA on instructions, LLM-Pruner's recipe; see `recover_lora`."""

    Config = LoraRecoveryConfig

    @classmethod
    def training_tokens(cls, settings: dict[str, Any]) -> int | None:
        return LoraRecoveryConfig.model_validate(settings).token_budget

    def recover(self, model: PreTrainedModel, settings: dict[str, Any], data: PruningData, run: Run) -> dict[str, Any]:
        done = recover_lora(model, LoraRecoveryConfig.model_validate(settings), data, run)
        text = {"purpose": "recovery", "source": done.text, "sha256": done.text_sha256}
        losses = {"validation_before": done.validation_before, "validation_after": done.validation_after}
        return {"tokens": done.tokens, "steps": done.steps, "data": [text], **losses}
