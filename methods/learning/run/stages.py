"""This module has the stages that train a `MaskLearner`: its masks and adapters together, then its adapters alone."""

from __future__ import annotations

import time
from typing import cast

import torch
from torch import Tensor

from prunebench.methods.learning.gates.gates import HEAD_KINDS, GateSet
from prunebench.methods.learning.gates.schedule import Decay, decayed, target_sparsity
from prunebench.methods.learning.run.learner import MaskLearner
from prunebench.methods.learning.run.loop import Stage
from prunebench.methods.learning.run.state import load_optimizer, optimizer_tensors
from prunebench.methods.learning.text.packing import Pack, PackSampler, lm_loss
from prunebench.methods.learning.text.precision import computing_in

CLIP_NORM = 1.0
VALIDATION_EXAMPLES = 100  # of those held out, the first ones


class TrainingStage(Stage):
    """Trains with one AdamW without weight decay, with the settings of the learner's config; subclasses say what a step is."""

    def __init__(self, learner: MaskLearner, steps: int) -> None:
        self.learner, self.steps = learner, steps
        self.optimizer: torch.optim.Optimizer

    def loss(self, pack: Pack) -> Tensor:
        """Returns the loss of one pack, a scalar with its gradient: the mean cross-entropy of its labels, where a method has no other."""
        return lm_loss(self.learner.model, pack)

    def tensors(self) -> dict[str, Tensor]:
        return optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        load_optimizer(self.optimizer, tensors)

    @property
    def _current_lora_lr(self) -> float:
        return cast(float, self.optimizer.param_groups[0]["lr"])

    @_current_lora_lr.setter
    def _current_lora_lr(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate

    def _accumulate(self, packs: int, *, draw: bool) -> tuple[float, int]:
        """Runs backward passes over `packs` packs, with new draws of the gates for each; returns the mean loss and the tokens."""
        total, tokens = torch.zeros(()), 0
        for _ in range(packs):
            pack = self.learner.next_pack()
            if draw:
                self.learner.draw_gates(pack)
            with computing_in(self.learner.config.compute_dtype, self.learner.model.device):
                loss = self.loss(pack) / packs
            if loss.requires_grad:
                loss.backward()
            total = total + loss.detach().cpu()
            tokens += pack.num_tokens
        return total.item(), tokens

    def _update(self) -> None:
        lora = [parameter for parameter in self.learner.lora_parameters if parameter.grad is not None]
        if lora:
            torch.nn.utils.clip_grad_norm_(lora, CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class LearnMasks(TrainingStage):
    """Trains LoRA alone for the warm-up, then LoRA, gates and multipliers together, while the target rises to the budget.

    A method with a loss of its own subclasses it. Adam weighs a gate's share of the size against the noise of its own gradient,
    and a head's share is a hundred times a channel's: at equal rates heads close first, which `head_mask_lr` is for.
    """

    name = "learning masks"
    loss_name = "lm_loss"

    def __init__(self, learner: MaskLearner, *, warmup_epochs: float = 0.0) -> None:
        self.config = config = learner.config
        epoch = learner.steps_per_epoch
        self.warmup_steps = round(warmup_epochs * epoch) if config.lora_rank else 0
        self.ramp_steps = round(config.ramp_epochs * epoch)
        super().__init__(learner, self.warmup_steps + max(1, round(config.pruning_epochs * epoch)))

    def enter(self) -> None:
        learner, config = self.learner, self.config
        gates = learner.gates.log_alpha
        head_mask_lr = config.mask_lr if config.head_mask_lr is None else config.head_mask_lr
        self.optimizer = torch.optim.AdamW(
            [
                {"params": learner.lora_parameters, "lr": config.lora_lr},
                {"params": [gates[kind] for kind in gates if kind in HEAD_KINDS], "lr": head_mask_lr},
                {"params": [gates[kind] for kind in gates if kind not in HEAD_KINDS], "lr": config.mask_lr},
                {"params": [learner.lagrangian.multipliers], "lr": config.multiplier_lr, "maximize": True},
            ],
            weight_decay=0.0,
        )

    def step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        learner = self.learner
        is_pruning = step >= self.warmup_steps
        self._current_lora_lr = self._lora_rate(step)
        loss, tokens = self._accumulate(1, draw=is_pruning)
        values = {self.loss_name: loss}
        if is_pruning:
            values |= self._press(step - self.warmup_steps)
        self._update()
        learner.gates.clamp()
        speed = tokens / (time.perf_counter() - started)
        return values | {"lora_lr": self._current_lora_lr, "tokens_per_second": speed, "tokens_seen": learner.tokens_seen}

    def _lora_rate(self, step: int) -> float:
        return decayed(self.config.lora_lr, step, self.steps, "linear")

    def _press(self, pruning_step: int) -> dict[str, float]:
        """Runs the backward pass of the Lagrangian; returns what is logged of the gates, as they were for this step."""
        learner = self.learner
        target = target_sparsity(pruning_step, self.ramp_steps, learner.budget.sparsity, ramp=self.config.ramp)
        probabilities = learner.gates.probabilities()
        sparsity = learner.size.sparsity(learner.gates.as_open(probabilities))
        if learner.is_uniform:
            learner.lagrangian(learner.gates.sparsity_of_vectors(probabilities), target / learner.gated_fraction).backward()
        else:
            learner.lagrangian(sparsity, target).backward()
        lambda1, lambda2 = learner.lagrangian.multipliers.mean(1).tolist()
        return {
            "expected_sparsity": sparsity.item(),
            "target_sparsity": target,
            "lambda1": lambda1,
            "lambda2": lambda2,
            "gate_entropy": learner.gates.entropy(probabilities),
            **_expected_units(learner.gates, probabilities),
        }


class FineTune(TrainingStage):
    """Trains LoRA alone, on the model as the decided gates leave it, on the learner's later text where there is one.

    It logs the mean loss of the first held-out examples (at most VALIDATION_EXAMPLES) before and after, as `validation_loss`.
    """

    name = "fine-tuning"

    def __init__(self, learner: MaskLearner, *, decay: Decay, accumulation: int = 1) -> None:
        """Makes the stage; it has no steps without LoRA.

        Args:
            decay: of the learning rate, from `finetune_lr`.
            accumulation: packs of one step.
        """
        config = learner.config
        packs = config.finetune_epochs * learner.steps_per_epoch
        super().__init__(learner, round(packs / accumulation) if config.lora_rank else 0)
        self.decay, self.accumulation = decay, accumulation
        self.validation = (learner.later or learner.text).validation[:VALIDATION_EXAMPLES]

    def enter(self) -> None:
        learner = self.learner
        if learner.later is not None:
            learner.use_text(learner.later.train, self.name)
        hardened = learner.harden()
        learner.gates.as_gates(hardened.values, learner.live)
        self._decided = {
            "landing_shift": hardened.shift,
            "realised_sparsity": learner.budget.achieved(learner.anatomy.dense_params, hardened.masks.count(learner.anatomy)),
        }
        self.optimizer = torch.optim.AdamW([{"params": learner.lora_parameters, "lr": learner.config.finetune_lr}], weight_decay=0.0)

    def step(self, step: int) -> dict[str, float]:
        validated = self._validate() if step == 0 else {}
        started = time.perf_counter()
        self._current_lora_lr = decayed(self.learner.config.finetune_lr, step, self.steps, self.decay)
        loss, tokens = self._accumulate(self.accumulation, draw=False)
        self._update()
        speed = tokens / (time.perf_counter() - started)
        if step + 1 == self.steps:
            validated = self._validate()
        pace = {"lora_lr": self._current_lora_lr, "tokens_per_second": speed, "tokens_seen": self.learner.tokens_seen}
        return {"lm_loss": loss, **pace, **self._decided, **validated}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Returns the mean loss of a held-out label, by its name; nothing where nothing is held out."""
        if not self.validation:
            return {}
        learner = self.learner
        sampler = PackSampler(self.validation, learner.config.batch_tokens, 0, learner.sampler.prefix)
        total, labels = 0.0, 0
        for _ in range(sampler.packs_per_epoch):
            pack = sampler.next()
            with computing_in(learner.config.compute_dtype, learner.model.device):
                total += self.loss(pack).item() * len(pack.targets)
            labels += len(pack.targets)
        return {"validation_loss": total / labels}


def _expected_units(gates: GateSet, probabilities: dict[str, Tensor]) -> dict[str, float]:
    """Returns the expected KV groups and channels of each layer and the expected residual width, by the names of their curves."""
    names, sums = [], []
    for kind, label in (("kv_groups", "expected_heads"), ("ffn", "expected_channels")):
        for i, part in enumerate(gates.split(kind, probabilities) or ()):
            if part is not None:
                names.append(f"{label}.layer_{i:02d}")
                sums.append(part.detach().sum())
    if "hidden" in probabilities:
        names.append("expected_hidden")
        sums.append(probabilities["hidden"].detach().sum())
    return dict(zip(names, torch.stack(sums).tolist(), strict=True)) if sums else {}
