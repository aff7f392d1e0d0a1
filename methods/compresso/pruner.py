"""Compresso as a pruning method: its settings, its text, its three stages."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.calibration.training_text import Example, TrainingConfig, TrainingText
from prunebench.methods.compresso.prompts import Prompt, prompt_text
from prunebench.methods.data import PruningData
from prunebench.methods.pruner import CountPrompt, Pruner, PrunerConfig, Run, Support
from prunebench.methods.registry import register
from prunebench.methods.training.adapters import Projection
from prunebench.methods.training.gates import GateKinds
from prunebench.methods.training.hardening import Survivors
from prunebench.methods.training.learner import DRAWS, Draws, LearnerSettings, MaskLearner
from prunebench.methods.training.loop import run_stages
from prunebench.methods.training.packed_attention import can_split
from prunebench.methods.training.packing import Pack, lm_loss, with_prompt
from prunebench.methods.training.precision import DESCRIPTION as PRECISION
from prunebench.methods.training.precision import ComputeDtype
from prunebench.methods.training.schedule import Ramp
from prunebench.methods.training.source_text import fingerprint, text_to_learn
from prunebench.methods.training.stages import HEAD_MASK_LR, FineTune, LearnMasks
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.context import check_tokens
from prunebench.models.errors import BadInput
from prunebench.models.masks import Masks
from prunebench.models.special_tokens import Bos, prompt_ids

log = logging.getLogger(__name__)


class CompressoConfig(PrunerConfig):
    """Defaults are the released script's for LLaMA-7B (spec section 10), unless a description says otherwise."""

    text: TrainingConfig = Field(
        TrainingConfig(source="alpaca", max_len=1024),
        description="training text; besides the named sources, 'calibration' (the grid's calibration samples) and 'self' (the "
        "model writes it, LLM-QAT style); the paper has GPT4-Alpaca",
    )
    self_text_examples: int = Field(512, ge=1, description="texts of text.max_len tokens to write, for the source 'self'")
    prompt: Prompt = Field("training", description="collaborative prompt before every example; 'none' is the ablation")
    batch_tokens: int = Field(
        1024, ge=8, description="tokens of a step, with the prompt, which all examples of a pack share (the paper: one example)"
    )
    steps_per_epoch: int | None = Field(None, ge=1, description="None: one pass over the text; a number shrinks or stretches all stages")
    warmup_epochs: float = Field(1.0, ge=0, description="LoRA alone, gates absent")
    pruning_epochs: float = Field(7.0, gt=0, description="LoRA, gates and multipliers together")
    ramp_epochs: float = Field(4.0, ge=0, description="of the pruning epochs, those in which the target rises")
    finetune_epochs: float = Field(3.0, ge=0, description="LoRA alone after the gates are decided; 0 leaves it to the grid's recovery")
    finetune_accumulation: int = Field(8, ge=1, description="packs of one fine-tuning step")
    ramp: Ramp = Field("linear", description="'cubic' is what the paper is reported to use")
    lora_rank: int = Field(8, ge=0, description="0: no LoRA, the weights stay as they are")
    lora_alpha: float = Field(8.0, gt=0, description="the adapters are scaled by alpha / rank")
    lora_projections: tuple[Projection, ...] = Field(("q", "v"), min_length=1, description="projections that get adapters")
    lora_lr: float = Field(5e-5, gt=0, description="falls to 0 over warm-up and pruning, linearly")
    finetune_lr: float = Field(4e-4, gt=0, description="falls to 0 over the fine-tuning, as a cosine")
    mask_lr: float = Field(0.1, gt=0, description="of the gates' log-alpha, constant")
    head_mask_lr: float | None = Field(None, gt=0, description=HEAD_MASK_LR)
    multiplier_lr: float = Field(0.1, gt=0, description="ascent of both multipliers, constant")
    lambda2_start: float = Field(
        0.0, ge=0, description="quadratic multiplier at the start (official: 0); 1000 lets a few hundred steps follow their schedule"
    )
    temperature: float = Field(2 / 3, gt=0, description="of the hard-concrete gates")
    gate_draws: Draws = Field("pack", description=f"{DRAWS}; the official code's batch is one example")
    head_gates: bool = Field(True, description="gates on KV groups (single heads in models without grouping)")
    query_head_gates: bool = Field(False, description="gates on query heads too; every kept group of a layer keeps as many")
    channel_gates: bool = Field(True, description="gates on MLP channels")
    hidden_gates: bool = Field(True, description="one gate vector on the residual width")
    protect_first: int = Field(0, ge=0, description="layers at the start without head and channel gates")
    protect_last: int = Field(0, ge=0, description="layers at the end without them")
    mlp_gate_placement: Literal["product", "branches"] = Field(
        "product", description="on the input of the down projection (linear for soft gates); 'branches' is the official code's"
    )
    survivors: Survivors = Field("soft", description="what stays keeps its soft value (official) or becomes 1 ('hard')")
    compute_dtype: ComputeDtype = Field("model", description=PRECISION)
    gradient_checkpointing: bool = Field(False, description="less memory, about a third more time")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints of the training state")

    @model_validator(mode="after")
    def _ramp_ends(self) -> CompressoConfig:
        if self.ramp_epochs > self.pruning_epochs:
            raise ValueError(f"ramp_epochs = {self.ramp_epochs:g} is not accepted: give at most pruning_epochs, {self.pruning_epochs:g}")
        return self


@register("compresso")
class Compresso(Pruner[CompressoConfig]):
    """Learns hard-concrete gates and LoRA on the usual loss, under a Lagrangian that holds the expected size to a schedule.

    Source: Compresso, arXiv 2310.05015, and its released code (spec/compresso). Departures: KV groups instead of heads; RMS
    norms divide by the model's own width; the expected size is exact and counts the budget's basis; examples are packed
    without seeing each other; gates land on the budget (`methods.training.hardening`) and are folded into every weight,
    the embedding included, so that what is sliced is what was trained.
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
        epochs = config.pruning_epochs + (config.warmup_epochs + config.finetune_epochs if config.lora_rank else 0)
        return None if config.steps_per_epoch is None else round(epochs * config.steps_per_epoch * config.batch_tokens)

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
        examples, held_out = list(text.train), list(text.validation)
        if prompt is not None and not can_split(model):
            examples, held_out, prompt = with_prompt(examples, prompt), with_prompt(held_out, prompt), None
        settings = LearnerSettings(
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            projections=config.lora_projections,
            kinds=gate_kinds(config, Anatomy.from_model(model)),
            temperature=config.temperature,
            mlp_placement=config.mlp_gate_placement,
            survivors=config.survivors,
            batch_tokens=config.batch_tokens,
            gradient_checkpointing=config.gradient_checkpointing,
            compute_dtype=config.compute_dtype,
            lambda2_start=config.lambda2_start,
            draws=config.gate_draws,
        )
        with torch.enable_grad(), MaskLearner(model, settings, budget, examples, run.seed, run.device, prompt) as learner:
            epoch = config.steps_per_epoch or learner.sampler.packs_per_epoch
            trains_lora = config.lora_rank > 0

            def loss(pack: Pack) -> Tensor:
                return lm_loss(model, pack)

            stages = [
                LearnMasks(
                    learner,
                    loss,
                    warmup_steps=round(config.warmup_epochs * epoch) if trains_lora else 0,
                    pruning_steps=max(1, round(config.pruning_epochs * epoch)),
                    ramp_steps=round(config.ramp_epochs * epoch),
                    ramp=config.ramp,
                    lora_lr=config.lora_lr,
                    mask_lr=config.mask_lr,
                    head_mask_lr=config.head_mask_lr,
                    multiplier_lr=config.multiplier_lr,
                ),
                FineTune(
                    learner,
                    loss,
                    steps=round(config.finetune_epochs * epoch / config.finetune_accumulation) if trains_lora else 0,
                    lora_lr=config.finetune_lr,
                    decay="cosine",
                    accumulation=config.finetune_accumulation,
                    validation=held_out,
                ),
            ]
            shared = [] if prompt is None else [Example(prompt, 0)]
            mark = fingerprint(config, budget, run.seed, [*shared, *examples])
            run_stages(stages, learner, run, fingerprint=mark, checkpoint_every=config.checkpoint_every)
            log.info("compresso learnt its masks on %d tokens", learner.tokens_seen)
            return learner.finish()


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
    """Token ids of the collaborative prompt, as scoring with it has them; None for 'none'.

    Raises:
        BadInput: there is no tokenizer for it.
    """
    text = prompt_text(prompt)
    if not text:
        return None
    if data.tokenizer is None:
        raise BadInput(f"prompt {prompt!r} needs a tokenizer, and these data ({data.description}) were made without one; use prompt: none.")
    return torch.tensor(prompt_ids(data.tokenizer, text, bos), dtype=torch.int64)


def gate_kinds(config: CompressoConfig, anatomy: Anatomy) -> GateKinds:
    layers = tuple(range(config.protect_first, len(anatomy.layers) - config.protect_last))
    return GateKinds(config.head_gates, config.query_head_gates, config.channel_gates, config.hidden_gates, layers)
