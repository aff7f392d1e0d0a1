"""This module has what training stages train: a frozen model with adapters and gates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunebench.methods.data.training_text import Example, TrainingText
from prunebench.methods.learning.config import LearningConfig
from prunebench.methods.learning.gates.expected_size import ExpectedSize
from prunebench.methods.learning.gates.folding import fold_gates
from prunebench.methods.learning.gates.gates import GateSet
from prunebench.methods.learning.gates.hard_concrete import HardConcrete
from prunebench.methods.learning.gates.hardening import Hardened, harden
from prunebench.methods.learning.gates.lagrangian import Lagrangian
from prunebench.methods.learning.run.adapters import Adapters
from prunebench.methods.learning.run.loop import Learner, Stage, run_stages
from prunebench.methods.learning.text.packed_attention import packed_attention
from prunebench.methods.learning.text.packing import Pack, PackSampler
from prunebench.methods.learning.text.precision import frozen_weights_in
from prunebench.methods.learning.text.source_text import fingerprint
from prunebench.methods.pruner import Run
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.gating.soft_masks import AppliedGates, Gates, apply_gates
from prunebench.models.masks import Masks

log = logging.getLogger(__name__)


class MaskLearner(Learner):
    """Holds gates and LoRA on one frozen model. Use it as a context: leaving it takes away every hook and adapter.

    Attributes:
        config: the method's settings; stages read theirs from here too.
        live: the gates that act on the forward pass now; stages assign to it.
        generator: of the gates' noise; the order of the text has its own seed.
        steps_per_epoch: the setting, or the packs of one pass over the text.
        fingerprint: of what decides the outcome of the run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: LearningConfig,
        budget: Budget,
        text: TrainingText,
        run: Run,
        *,
        later: TrainingText | None = None,
        prompt: Tensor | None = None,
        is_uniform: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Makes gates in their initial state; nothing is attached to the model yet.

        Args:
            later: the text of the fine-tuning; None: it goes on in `text`.
            prompt: (tokens,) that all examples of a pack share in front of them.
            is_uniform: every layer's groups and channels meet the target on their own, each with its own multipliers.
            gradient_checkpointing: compute activations again in the backward pass.
        """
        self.model, self.config, self.budget, self.run = model, config, budget, run
        self.text, self.later = text, later
        self.is_uniform, self.gradient_checkpointing = is_uniform, gradient_checkpointing
        self.anatomy = Anatomy.from_model(model)
        self.size = ExpectedSize(self.anatomy, budget.basis)
        self.generator = run.generator()
        self.gates = GateSet(
            self.anatomy,
            config.gate_kinds(self.anatomy),
            self.generator,
            distribution=HardConcrete(config.temperature),
            device=run.device,
        )
        self.gates.clamp()
        self.lagrangian = Lagrangian(run.device, self.gates.num_vectors if is_uniform else 1, config.lambda2_start)
        self.sampler = PackSampler(text.train, config.batch_tokens, run.seed, prompt)
        self.steps_per_epoch = config.steps_per_epoch or self.sampler.packs_per_epoch
        shared = [] if prompt is None else [Example(prompt, 0)]
        self.fingerprint = fingerprint(config, budget, run.seed, [*shared, *text.train, *(later.train if later else ())])
        self.live = Gates()
        self.tokens_seen = 0
        self._text_name = ""
        self.adapters: Adapters | None = None
        self._applied: AppliedGates | None = None
        self._open = ExitStack()
        self._trainable: dict[str, bool] = {}

    def __enter__(self) -> Self:
        self._trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        try:
            self._attach()
        except BaseException:
            self._take_away()
            raise
        return self

    def _attach(self) -> None:
        model, config = self.model, self.config
        model.requires_grad_(False)
        if config.lora_rank:
            self.adapters = Adapters(
                model,
                self.anatomy,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                projections=config.lora_projections,
                generator=self.generator,
            )
        self._open.enter_context(frozen_weights_in(config.compute_dtype, model))
        self._applied = apply_gates(
            model,
            self.anatomy,
            self.live,
            mlp_placement=config.mlp_gate_placement,
            in_training=not self.gradient_checkpointing,
        )
        if self.gradient_checkpointing:
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
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
            self.model.disable_input_require_grads()
        self.model.eval()

    def learn(self, *stages: Stage) -> Masks:
        """Runs the stages, a killed run from its last checkpoint on, and returns what stays, as `finish` does.

        Raises:
            TrainingDiverged: a logged value is not finite.
        """
        with torch.enable_grad():
            run_stages(stages, self, self.run, fingerprint=self.fingerprint, checkpoint_every=self.config.checkpoint_every)
            log.info("masks learnt on %d tokens", self.tokens_seen)
            return self.finish()

    def use_text(self, examples: Sequence[Example], name: str) -> None:
        """Takes other training text from now on; a resumed run that had begun it goes on where it was."""
        started = self._text_name == name
        place = (self.sampler.epoch, self.sampler.index) if started else (0, 0)
        self.sampler = PackSampler(examples, self.config.batch_tokens, self.sampler.seed, self.sampler.prefix)
        self.sampler.go_to(*place)
        self._text_name = name

    def next_pack(self) -> Pack:
        """Takes the next pack of the text, and counts its tokens."""
        pack = self.sampler.next()
        self.tokens_seen += pack.num_tokens
        return pack

    def draw_gates(self, pack: Pack) -> None:
        """Lets a new sample of every gate act from now on, or one for each example of the pack."""
        parts = tuple(pack.layout.parts) if self.config.gate_draws == "example" else None
        self.gates.as_gates(self.gates.sample(self.generator, None if parts is None else len(parts)), self.live, parts)

    def harden(self) -> Hardened:
        """Decides the gates as they are now, and leaves them as they are; see `methods.learning.gates.hardening`."""
        return harden(self.gates, self.anatomy, self.budget, self.config.survivors)

    def finish(self) -> Masks:
        """Merges the adapters, folds the decided gates into the weights, and returns what stays."""
        hardened = self.harden()
        self._open.close()
        if self.adapters is not None:
            self.adapters.merge()
            self.adapters = None
        decided = Gates()
        self.gates.as_gates(hardened.values, decided)
        fold_gates(self.model, self.anatomy, decided, self.config.mlp_gate_placement)
        return hardened.masks

    @property
    def gated_fraction(self) -> float:
        """The fraction of the dense parameters that would go with all gates closed."""
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
