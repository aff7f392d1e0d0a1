"""A model with adapters and gates: what the stages of `methods.learning.run.stages` train."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunebench.methods.calibration.training_text import Example
from prunebench.methods.learning.gates.expected_size import ExpectedSize
from prunebench.methods.learning.gates.folding import fold_gates
from prunebench.methods.learning.gates.gates import GateKinds, GateSet
from prunebench.methods.learning.gates.hard_concrete import HardConcrete
from prunebench.methods.learning.gates.hardening import Hardened, Survivors, harden
from prunebench.methods.learning.gates.lagrangian import Lagrangian
from prunebench.methods.learning.run.adapters import Adapters, Projection
from prunebench.methods.learning.run.loop import Learner
from prunebench.methods.learning.text.packed_attention import packed_attention
from prunebench.methods.learning.text.packing import Pack, PackSampler
from prunebench.methods.learning.text.precision import ComputeDtype, frozen_weights_in
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks
from prunebench.models.soft_masks import AppliedGates, Gates, MLPPlacement, apply_gates

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
        self._trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        try:
            self._attach()
        except BaseException:
            self._take_away()
            raise
        return self

    def _attach(self) -> None:
        model, settings = self.model, self.settings
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
        self._open.enter_context(frozen_weights_in(settings.compute_dtype, model))
        self._applied = apply_gates(
            model,
            self.anatomy,
            self.live,
            mlp_placement=settings.mlp_placement,
            in_training=not settings.gradient_checkpointing,
        )
        if settings.gradient_checkpointing:
            self._open.enter_context(packed_attention(model))  # the backward pass computes attention again
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()  # transformers recomputes in train mode only
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._take_away()

    def _take_away(self) -> None:
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
            self.model.disable_input_require_grads()
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
        """Decides the gates as they are now; see `methods.learning.gates.hardening`."""
        return harden(self.gates, self.anatomy, self.budget, self.settings.survivors)

    def finish(self) -> Masks:
        """Merges the adapters, folds the decided gates into the weights, and returns what stays."""
        hardened = self.harden()
        self._open.close()
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
