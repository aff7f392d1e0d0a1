"""This module has Compresso as a pruning method: its settings, its prompt, its stages; docs/methods/compresso.md has the formulas."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.compresso.prompts import Prompt, prompt_text
from prunebench.methods.data import PruningData
from prunebench.methods.data.training_text import TrainingConfig, TrainingText
from prunebench.methods.learning.config import LearningConfig
from prunebench.methods.learning.gates.gates import GateKinds
from prunebench.methods.learning.run.learner import MaskLearner
from prunebench.methods.learning.run.stages import FineTune, LearnMasks
from prunebench.methods.learning.text.packed_attention import can_split
from prunebench.methods.learning.text.packing import with_prompt
from prunebench.methods.learning.text.source_text import text_to_learn
from prunebench.methods.pruner import CountPrompt, Pruner, Run, Support
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.context import check_tokens
from prunebench.models.errors import BadInput
from prunebench.models.masks import Masks
from prunebench.models.special_tokens import Bos, prompt_ids


class CompressoConfig(LearningConfig):
    """Settings of Compresso beside those of every learning method; defaults are the released script's for LLaMA-7B."""

    prompt: Prompt = Field("training", description="collaborative prompt before every example; 'none' is the ablation")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of LoRA alone before the pruning ones, gates absent")
    finetune_accumulation: int = Field(8, ge=1, description="packs of one fine-tuning step")
    head_gates: bool = Field(True, description="gates on KV groups (single heads in models without grouping)")
    query_head_gates: bool = Field(False, description="gates on query heads too, ours; every kept group of a layer keeps as many")
    channel_gates: bool = Field(True, description="gates on MLP channels")
    protect_first: int = Field(0, ge=0, description="layers at the start without head and channel gates")
    protect_last: int = Field(0, ge=0, description="layers at the end without them")
    gradient_checkpointing: bool = Field(False, description="less memory, about a third more time; the script has it on")

    def gate_kinds(self, anatomy: Anatomy) -> GateKinds:
        layers = tuple(range(self.protect_first, len(anatomy.layers) - self.protect_last))
        return GateKinds(self.head_gates, self.query_head_gates, self.channel_gates, self.hidden_gates, layers)


@register("compresso")
class Compresso(Pruner[CompressoConfig]):
    """Learns hard-concrete gates and LoRA on the usual loss, under a Lagrangian that holds the expected size to a schedule.

    Source: Compresso, arXiv 2310.05015, and its released code. docs/methods/compresso.md goes through it equation by equation,
    with every departure: KV groups instead of heads, norms that divide by the model's own width, an exact expected size on the
    budget's basis, packed examples, an exact landing, gates folded into every weight.
    """

    Config = CompressoConfig

    @classmethod
    def quick_config(cls) -> CompressoConfig:
        return CompressoConfig(
            text=TrainingConfig(source="calibration"),
            prompt="none",
            batch_tokens=64,
            steps_per_epoch=1,
            finetune_accumulation=2,
            mask_lr=1.0,
            lora_rank=2,
        )

    def supports(self, anatomy: Anatomy) -> Support:
        config = self.config
        if not (config.head_gates or config.channel_gates or config.hidden_gates):
            return Support.no("every kind of gate is switched off; switch on head_gates, channel_gates or hidden_gates.")
        if config.query_head_gates and not config.head_gates:
            return Support.no("query_head_gates need head_gates; switch those on too.")
        if config.protect_first + config.protect_last >= len(anatomy.layers) and not config.hidden_gates:
            return Support.no(f"protect_first and protect_last leave none of {len(anatomy.layers)} layers to prune.")
        return Support.yes()

    def training_tokens(self) -> int | None:
        config: CompressoConfig = self.config
        return config.training_tokens(config.warmup_epochs)

    def lengths(self, seq_len: int, prompt_tokens: CountPrompt) -> dict[str, int]:
        text, prompt = self.config.text, prompt_text(self.config.prompt)
        lengths = super().lengths(seq_len, prompt_tokens)
        if prompt:
            name, length = ("calibration.seq_len", seq_len) if text.source == "calibration" else ("text.max_len", text.max_len)
            own_bos = prompt_tokens(prompt, text.bos) - prompt_tokens(prompt, "never")  # which examples behind it don't have
            lengths[f"prompt + {name}"] = prompt_tokens(prompt, text.bos) + length - own_bos
        return lengths

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        config: CompressoConfig = self.config
        text, prompt = text_behind_prompt(config, model, data, run)
        if prompt is not None and not can_split(model):
            train, held_out = (tuple(with_prompt(examples, prompt)) for examples in (text.train, text.validation))
            text, prompt = replace(text, train=train, validation=held_out), None
        learner = MaskLearner(model, config, budget, text, run, prompt=prompt, gradient_checkpointing=config.gradient_checkpointing)
        with learner:
            return learner.learn(
                LearnMasks(learner, warmup_epochs=config.warmup_epochs),
                FineTune(learner, decay="cosine", accumulation=config.finetune_accumulation),
            )


def text_behind_prompt(config: CompressoConfig, model: PreTrainedModel, data: PruningData, run: Run) -> tuple[TrainingText, Tensor | None]:
    """The training text and the prompt that each of its examples stands behind (None: no prompt); BOS stands before both, once.

    Raises:
        BadInput: the text can't be had, or prompt and text together are more than the model's context.
    """
    text = text_to_learn(config.text, config.self_text_examples, model, data, run)
    prompt = prompt_tokens(config.prompt, data, config.text.bos)
    if prompt is None:
        return text, None
    text = text.without_bos()
    check_tokens("the ids of the prompt", f"the prompt ({len(prompt)} tokens) + the text", [prompt], model, before=text.longest)
    return text, prompt


def prompt_tokens(prompt: Prompt, data: PruningData, bos: Bos = "tokenizer") -> Tensor | None:
    """Returns the token ids of the collaborative prompt, as scoring with it has them; None for 'none'.

    Raises:
        BadInput: there is no tokenizer for it.
    """
    text = prompt_text(prompt)
    if not text:
        return None
    if data.tokenizer is None:
        raise BadInput(f"prompt {prompt!r} needs a tokenizer, and these data ({data.description}) were made without one; use prompt: none.")
    return torch.tensor(prompt_ids(data.tokenizer, text, bos), dtype=torch.int64)
