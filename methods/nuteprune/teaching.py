"""This module has student and teacher on one set of weights: the teacher is a forward pass with other gates and adapters."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prunebench.methods.learning.gates.hardening import deterministic_values
from prunebench.methods.learning.gates.schedule import decayed
from prunebench.methods.learning.run.learner import MaskLearner
from prunebench.methods.learning.run.stages import LearnMasks
from prunebench.methods.learning.text.cross_entropy import cross_entropy
from prunebench.methods.learning.text.packing import Pack, pack_logits, run_packed
from prunebench.methods.nuteprune.config import NutePruneConfig
from prunebench.methods.nuteprune.distillation import LayerStates, kl_loss
from prunebench.methods.nuteprune.published_count import published_sparsity
from prunebench.methods.nuteprune.snapshots import SnapshotManager
from prunebench.models.gating.soft_masks import Gates

GATE = "gate."
LORA = "lora."


class TaughtLearner(MaskLearner):
    """Learns gates and LoRA, and keeps its past selves as teachers."""

    config: NutePruneConfig

    @cached_property
    def teachers(self) -> SnapshotManager:
        config = self.config
        progression = "dense" if config.distillation == "none" else config.distillation
        return SnapshotManager(self.run.folder, self.fingerprint, self.budget.sparsity, config.spacing, config.gap, progression)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"teachers": self.teachers.facts()}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super().load(tensors, facts)
        self.teachers.load(facts["teachers"])

    def snapshot(self) -> dict[str, Tensor]:
        """Returns the student as a teacher: its deterministic gates and its adapters."""
        values = deterministic_values(self.gates, self.anatomy)
        lora = {} if self.adapters is None else self.adapters.tensors()
        return {GATE + kind: value for kind, value in values.items()} | {LORA + name: tensor for name, tensor in lora.items()}

    @torch.no_grad()
    def teacher_logits(self, pack: Pack, index: int | None) -> Tensor:
        """Returns the (positions, vocabulary) logits of a snapshot, or of the dense model for None; the tail's too.

        The student's gates, adapters and gradients are the same objects before and after: other gates are handed to the hooks
        and other adapter tensors to this one call.
        """
        gates: dict[str, Tensor] = {}
        if index is None:  # detached, since older autocasts would hand the student the casts made here, without a graph
            lora = {name: torch.zeros_like(p) if ".lora_B." in name else p.detach() for name, p in self._lora().items()}
        else:
            found = self.teachers.load_snapshot(index, self.model.device)
            gates = {name.removeprefix(GATE): tensor for name, tensor in found.items() if name.startswith(GATE)}
            lora = {name: found[LORA + name].to(p.device) for name, p in self._lora().items()}
        student = Gates(**vars(self.live))
        try:
            self.gates.as_gates(gates, self.live)
            return run_packed(self.model, pack, lambda inputs: torch.func.functional_call(self.model, lora, (), inputs))
        finally:
            for name, value in vars(student).items():
                setattr(self.live, name, value)

    def _lora(self) -> dict[str, Any]:
        return {} if self.adapters is None else self.adapters.parameters


class Distill(LearnMasks):
    """Learns masks by the distillation loss (docs/methods/nuteprune.md, eq. 3); adapters rest for the mask-only epochs."""

    name = "distilling masks"
    learner: TaughtLearner
    config: NutePruneConfig

    def __init__(self, learner: TaughtLearner) -> None:
        super().__init__(learner)
        self.distils = self.config.distillation != "none"
        self.loss_name = "distillation_loss" if self.distils else "lm_loss"
        self.mask_only_steps = round(self.config.mask_only_epochs * learner.steps_per_epoch)
        self._step = 0
        self._parts: dict[str, float] = {}

    def step(self, step: int) -> dict[str, float]:
        self._step, self._parts = step, {}
        return super().step(step) | self._parts

    def loss(self, pack: Pack) -> Tensor:
        learner, model, config = self.learner, self.learner.model, self.config
        pack = pack.to(model.device)
        if not self.distils:
            return super().loss(pack)
        index = learner.teachers.select(self.steps - self._step)
        states = LayerStates(config.layer_scale)
        with states.kept(model, learner.anatomy):
            theirs = learner.teacher_logits(pack, index)
        with states.compared(model, learner.anatomy, pack.num_tokens):
            ours = pack_logits(model, pack)
        assert states.loss is not None
        kl = kl_loss(
            ours,
            theirs,
            temperature=config.kl_temperature,
            sequences=pack.num_sequences,
            reduction=config.kl_reduction,
            positions=pack.num_tokens,
        )
        loss = config.kl_weight * kl + config.layer_weight * states.loss.to(kl.device)
        self._parts = {
            "kl_loss": kl.item(),
            "layer_loss": states.loss.item(),
            "teacher_sparsity": 0.0 if index is None else learner.teachers.sparsities[index],
        }
        return loss + config.lm_weight * _lm(ours, pack) if config.lm_weight else loss

    def _press(self, pruning_step: int) -> dict[str, float]:
        values = super()._press(pruning_step)
        sparsity, teachers = values["expected_sparsity"], self.learner.teachers
        if teachers.wants(sparsity):
            teachers.store(sparsity, self.learner.snapshot())
        teachers.note(sparsity, self.steps - self._step - 1)
        return values | {"published_sparsity": published_sparsity(self.learner.anatomy, values)}

    def _lora_rate(self, step: int) -> float:
        resting = self.mask_only_steps
        return decayed(self.config.lora_lr, max(0, step - resting), self.steps - resting, "linear")

    def _update(self) -> None:
        if self._step < self.mask_only_steps:
            for parameter in self.learner.lora_parameters:
                parameter.grad = None
        super()._update()


def _lm(logits: Tensor, pack: Pack) -> Tensor:
    return cross_entropy(logits[pack.predict_at.to(logits.device)], pack.targets.to(logits.device))
