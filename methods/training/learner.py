"""A model with adapters and gates, and the two kinds of stages that train them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods.calibration.training_text import Example
from methods.training.adapters import Adapters, Projection
from methods.training.expected_size import ExpectedSize
from methods.training.folding import fold_gates
from methods.training.gates import HEAD_KINDS, GateKinds, GateSet
from methods.training.hard_concrete import HardConcrete
from methods.training.hardening import Hardened, Survivors, harden
from methods.training.lagrangian import Lagrangian
from methods.training.loop import Learner, Stage
from methods.training.packed_attention import packed_attention
from methods.training.packing import Pack, PackSampler
from methods.training.precision import ComputeDtype, computing_in
from methods.training.schedule import Decay, Ramp, decayed, target_sparsity
from models.anatomy import Anatomy
from models.budget import Budget
from models.masks import Masks
from models.soft_masks import AppliedGates, Gates, MLPPlacement, apply_gates

CLIP_NORM = 1.0
VALIDATION_EXAMPLES = 100  # of those held out, the first ones

Loss = Callable[[Pack], Tensor]
Draws = Literal["example", "pack"]
DRAWS = "each example of a pack meets its own draw of the gates, as does a shared prompt, or all of it meets one"


@dataclass(frozen=True)
class LearnerSettings:
    """What is attached to the model; `rank` 0 means no adapters.

    is_uniform: every layer's groups and channels meet the target on their own, each with its own multipliers.
    lambda2_start: of the quadratic multipliers, see `Lagrangian`. draws: what meets one draw of the gates, see `DRAWS`.
    """

    rank: int
    alpha: float
    projections: tuple[Projection, ...]
    kinds: GateKinds
    temperature: float
    mlp_placement: MLPPlacement
    survivors: Survivors
    batch_tokens: int
    gradient_checkpointing: bool = False
    is_uniform: bool = False
    compute_dtype: ComputeDtype = "model"
    lambda2_start: float = 0.0
    draws: Draws = "pack"


class MaskLearner(Learner):
    """Gates and LoRA on one frozen model. Use as a context: leaving it takes away every hook and adapter.

    Attributes:
        live: the gates that act on the forward pass now; stages assign to it.
        generator: of the gates' noise; the order of the text has its own seed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: LearnerSettings,
        budget: Budget,
        examples: Sequence[Example],
        seed: int,
        device: torch.device,
        prefix: Tensor | None = None,
    ) -> None:
        self.model, self.settings, self.budget = model, settings, budget
        self.anatomy = Anatomy.from_model(model)
        self.size = ExpectedSize(self.anatomy, budget.basis)
        self.generator = torch.Generator().manual_seed(seed)
        self.gates = GateSet(self.anatomy, settings.kinds, self.generator, distribution=HardConcrete(settings.temperature), device=device)
        self.gates.clamp()
        self.lagrangian = Lagrangian(device, self.gates.num_vectors if settings.is_uniform else 1, settings.lambda2_start)
        self.sampler = PackSampler(examples, settings.batch_tokens, seed, prefix)
        self.live = Gates()
        self.tokens_seen = 0
        self._text_name = ""
        self.adapters: Adapters | None = None
        self._applied: AppliedGates | None = None
        self._open = ExitStack()
        self._trainable: dict[str, bool] = {}

    def __enter__(self) -> MaskLearner:
        model, settings = self.model, self.settings
        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        model.requires_grad_(False)
        if settings.rank:
            self.adapters = Adapters(
                model,
                self.anatomy,
                rank=settings.rank,
                alpha=settings.alpha,
                projections=settings.projections,
                generator=self.generator,
            )
        self._applied = apply_gates(
            model,
            self.anatomy,
            self.live,
            mlp_placement=settings.mlp_placement,
            keeps_factors=not settings.gradient_checkpointing,
        )
        if settings.gradient_checkpointing:
            self._open.enter_context(packed_attention(model))  # the backward pass computes attention again
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()  # transformers recomputes in train mode only
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()
        if self._applied is not None:
            self._applied.remove()
        if self.adapters is not None:
            self.adapters.detach()
            self.adapters = None
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        if self.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        self.model.eval()

    def use_text(self, examples: Sequence[Example], name: str) -> None:
        """Other training text from now on; a resumed run that had begun it goes on where it was."""
        started = self._text_name == name
        place = (self.sampler.epoch, self.sampler.index) if started else (0, 0)
        self.sampler = PackSampler(examples, self.settings.batch_tokens, self.sampler.seed, self.sampler.prefix)
        self.sampler.go_to(*place)
        self._text_name = name

    def next_pack(self) -> Pack:
        pack = self.sampler.next()
        self.tokens_seen += pack.num_tokens
        return pack

    def draw_gates(self, pack: Pack) -> None:
        """A new sample of every gate, or one for each example of the pack, acts from now on."""
        parts = tuple(pack.layout.parts) if self.settings.draws == "example" else None
        self.gates.as_gates(self.gates.sample(self.generator, None if parts is None else len(parts)), self.live, parts)

    def harden(self) -> Hardened:
        """Decides the gates as they are now; see `methods.training.hardening`."""
        return harden(self.gates, self.anatomy, self.budget, self.settings.survivors)

    def finish(self) -> Masks:
        """Merges the adapters, folds the decided gates into the weights, and returns what stays."""
        hardened = self.harden()
        if self.adapters is not None:
            self.adapters.merge()
            self.adapters = None
        decided = Gates()
        self.gates.as_gates(hardened.values, decided)
        fold_gates(self.model, self.anatomy, decided, self.settings.mlp_placement)
        return hardened.masks

    @property
    def gated_fraction(self) -> float:
        """Fraction of the dense parameters that would go with all gates closed."""
        closed = {kind: torch.zeros_like(parameter) for kind, parameter in self.gates.log_alpha.items()}
        return self.size.sparsity(self.gates.as_open(closed)).item()

    @property
    def lora_parameters(self) -> list[nn.Parameter]:
        return [] if self.adapters is None else list(self.adapters.parameters.values())

    def tensors(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {f"log_alpha.{kind}": parameter for kind, parameter in self.gates.log_alpha.items()}
        state |= {"multipliers": self.lagrangian.multipliers, "generator": self.generator.get_state()}
        return state | ({} if self.adapters is None else self.adapters.tensors())

    def facts(self) -> dict[str, Any]:
        place = {"text": self._text_name, "epoch": self.sampler.epoch, "index": self.sampler.index}
        return place | {"tokens_seen": self.tokens_seen}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        for kind, parameter in self.gates.log_alpha.items():
            parameter.copy_(tensors[f"log_alpha.{kind}"])
        self.lagrangian.multipliers.copy_(tensors["multipliers"])
        self.generator.set_state(tensors["generator"])
        if self.adapters is not None:
            self.adapters.load(tensors)
        self._text_name = facts["text"]
        self.sampler.go_to(facts["epoch"], facts["index"])  # the stage that has other text brings it when it is entered
        self.tokens_seen = facts["tokens_seen"]


class TrainingStage(Stage):
    """A stage with one AdamW without weight decay; subclasses say what a step is."""

    def __init__(self, learner: MaskLearner, loss: Loss, steps: int) -> None:
        self.learner, self.loss, self.steps = learner, loss, steps
        self.optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        from methods.training.checkpoint import optimizer_tensors

        return optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        from methods.training.checkpoint import load_optimizer

        load_optimizer(self.optimizer, tensors)

    def _set_lora_lr(self, rate: float) -> None:
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
        self._set_lora_lr(decayed(self.lora_lr, step, self.steps, "linear"))
        loss, tokens = self._accumulate(self.accumulation, draw=is_pruning)
        values = {self.loss_name: loss}
        if is_pruning:
            values |= self._press(step - self.warmup_steps)
        self._update()
        learner.gates.clamp()
        return values | {"tokens_per_second": tokens / (time.perf_counter() - started), "tokens_seen": learner.tokens_seen}

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
        self._set_lora_lr(decayed(self.lora_lr, step, self.steps, self.decay))
        loss, tokens = self._accumulate(self.accumulation, draw=False)
        self._update()
        speed = tokens / (time.perf_counter() - started)
        if step + 1 == self.steps:
            validated = self._validate()
        return {"lm_loss": loss, "tokens_per_second": speed, "tokens_seen": self.learner.tokens_seen, **self._decided, **validated}

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
