"""The stages that train a `MaskLearner`: its masks and adapters together, then its adapters alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from prunebench.methods.calibration.training_text import Example
from prunebench.methods.learning.gates.gates import HEAD_KINDS, GateSet
from prunebench.methods.learning.gates.schedule import Decay, Ramp, decayed, target_sparsity
from prunebench.methods.learning.run.learner import MaskLearner
from prunebench.methods.learning.run.loop import Stage
from prunebench.methods.learning.text.packing import Pack, PackSampler
from prunebench.methods.learning.text.precision import computing_in

CLIP_NORM = 1.0
HEAD_MASK_LR = "of the gates on heads; None: mask_lr (official). In short runs heads close before channels do; slow them"
VALIDATION_EXAMPLES = 100  # of those held out, the first ones

Loss = Callable[[Pack], Tensor]


class TrainingStage(Stage):
    """A stage with one AdamW without weight decay; subclasses say what a step is."""

    def __init__(self, learner: MaskLearner, loss: Loss, steps: int) -> None:
        self.learner, self.loss, self.steps = learner, loss, steps
        self.optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        from prunebench.methods.learning.run.state import optimizer_tensors

        return optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        from prunebench.methods.learning.run.state import load_optimizer

        load_optimizer(self.optimizer, tensors)

    @property
    def _current_lora_lr(self) -> float:
        return cast(float, self.optimizer.param_groups[0]["lr"])

    @_current_lora_lr.setter
    def _current_lora_lr(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate

    def _accumulate(self, packs: int, *, draw: bool) -> tuple[float, int]:
        """Backward passes over `packs` packs, with new draws of the gates for each; the mean loss and the tokens."""
        total, tokens = torch.zeros(()), 0
        for _ in range(packs):
            pack = self.learner.next_pack()
            if draw:
                self.learner.draw_gates(pack)
            with computing_in(self.learner.settings.compute_dtype, self.learner.model.device):
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
    """LoRA alone for `warmup_steps`, then LoRA, gates and multipliers together, the target rising for `ramp_steps`.

    head_mask_lr: of the gates on heads and KV groups; None: mask_lr, as in the papers. Adam weighs a gate's share of the size
    against the noise of its own gradient, and a head's share is a hundred times a channel's: at equal rates heads close first.
    """

    name = "learning masks"
    loss_name = "lm_loss"

    def __init__(
        self,
        learner: MaskLearner,
        loss: Loss,
        *,
        warmup_steps: int,
        pruning_steps: int,
        ramp_steps: int,
        ramp: Ramp,
        lora_lr: float,
        mask_lr: float,
        multiplier_lr: float,
        head_mask_lr: float | None = None,
        accumulation: int = 1,
    ) -> None:
        super().__init__(learner, loss, warmup_steps + pruning_steps)
        self.warmup_steps, self.ramp_steps, self.ramp = warmup_steps, ramp_steps, ramp
        self.lora_lr, self.mask_lr, self.multiplier_lr = lora_lr, mask_lr, multiplier_lr
        self.head_mask_lr = mask_lr if head_mask_lr is None else head_mask_lr
        self.accumulation = accumulation

    def enter(self) -> None:
        learner = self.learner
        gates = learner.gates.log_alpha
        self.optimizer = torch.optim.AdamW(
            [
                {"params": learner.lora_parameters, "lr": self.lora_lr},
                {"params": [gates[kind] for kind in gates if kind in HEAD_KINDS], "lr": self.head_mask_lr},
                {"params": [gates[kind] for kind in gates if kind not in HEAD_KINDS], "lr": self.mask_lr},
                {"params": [learner.lagrangian.multipliers], "lr": self.multiplier_lr, "maximize": True},
            ],
            weight_decay=0.0,
        )

    def step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        learner = self.learner
        is_pruning = step >= self.warmup_steps
        self._current_lora_lr = self._lora_rate(step)
        loss, tokens = self._accumulate(self.accumulation, draw=is_pruning)
        values = {self.loss_name: loss}
        if is_pruning:
            values |= self._press(step - self.warmup_steps)
        self._update()
        learner.gates.clamp()
        speed = tokens / (time.perf_counter() - started)
        return values | {"lora_lr": self._current_lora_lr, "tokens_per_second": speed, "tokens_seen": learner.tokens_seen}

    def _lora_rate(self, step: int) -> float:
        return decayed(self.lora_lr, step, self.steps, "linear")

    def _press(self, pruning_step: int) -> dict[str, float]:
        """Backward pass of the Lagrangian; what is logged of the gates, as they were for this step."""
        learner = self.learner
        target = target_sparsity(pruning_step, self.ramp_steps, learner.budget.sparsity, ramp=self.ramp)
        probabilities = learner.gates.probabilities()
        sparsity = learner.size.sparsity(learner.gates.as_open(probabilities))
        if learner.settings.is_uniform:
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
    """LoRA alone, on the model as the decided gates leave it; `examples` replace the learner's text where given.

    Logs the mean loss of the first held-out examples (at most VALIDATION_EXAMPLES) before and after, as `validation_loss`.
    """

    name = "fine-tuning"

    def __init__(
        self,
        learner: MaskLearner,
        loss: Loss,
        *,
        steps: int,
        lora_lr: float,
        decay: Decay,
        accumulation: int,
        examples: Sequence[Example] | None = None,
        validation: Sequence[Example] = (),
    ) -> None:
        super().__init__(learner, loss, steps)
        self.lora_lr, self.decay, self.accumulation, self.examples = lora_lr, decay, accumulation, examples
        self.validation = validation[:VALIDATION_EXAMPLES]

    def enter(self) -> None:
        if self.examples is not None:
            self.learner.use_text(self.examples, self.name)
        hardened = self.learner.harden()
        self.learner.gates.as_gates(hardened.values, self.learner.live)
        self._decided = {
            "landing_shift": hardened.shift,
            "realised_sparsity": self.learner.budget.achieved(
                self.learner.anatomy.dense_params, hardened.masks.count(self.learner.anatomy)
            ),
        }
        self.optimizer = torch.optim.AdamW([{"params": self.learner.lora_parameters, "lr": self.lora_lr}], weight_decay=0.0)

    def step(self, step: int) -> dict[str, float]:
        validated = self._validate() if step == 0 else {}
        started = time.perf_counter()
        self._current_lora_lr = decayed(self.lora_lr, step, self.steps, self.decay)
        loss, tokens = self._accumulate(self.accumulation, draw=False)
        self._update()
        speed = tokens / (time.perf_counter() - started)
        if step + 1 == self.steps:
            validated = self._validate()
        pace = {"lora_lr": self._current_lora_lr, "tokens_per_second": speed, "tokens_seen": self.learner.tokens_seen}
        return {"lm_loss": loss, **pace, **self._decided, **validated}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The mean loss of a label, by its name; nothing where nothing is held out."""
        if not self.validation:
            return {}
        learner = self.learner
        sampler = PackSampler(self.validation, learner.settings.batch_tokens, 0, learner.sampler.prefix)
        total, labels = 0.0, 0
        for _ in range(sampler.packs_per_epoch):
            pack = sampler.next()
            with computing_in(learner.settings.compute_dtype, learner.model.device):
                total += self.loss(pack).item() * len(pack.targets)
            labels += len(pack.targets)
        return {"validation_loss": total / labels}


def _expected_units(gates: GateSet, probabilities: dict[str, Tensor]) -> dict[str, float]:
    """Expected KV groups and channels of each layer and the expected residual width."""
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
