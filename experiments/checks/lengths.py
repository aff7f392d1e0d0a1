"""Every length that a grid asks for against the context of its models, before anything runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import BaseModel

from prunebench.evaluation import check_form
from prunebench.evaluation.catalogue import get_protocol, known_tasks
from prunebench.experiments.cell import CellConfig
from prunebench.experiments.checks.methods import lengths_of, pruner_of, recovery_settings
from prunebench.experiments.config import Evaluation
from prunebench.experiments.plan import PlannedCell
from prunebench.methods.data.training_text import training_texts
from prunebench.models.context import check_length, context_length
from prunebench.models.errors import BadInput
from prunebench.models.loading import ModelSpec, load_config, load_tokenizer
from prunebench.models.special_tokens import Bos, bos_ids, prompt_ids

LONGEST_ANSWER = 1024
"""New tokens that a known task asks for at most; the harness's own files, which say it, take seconds to read."""

Length = tuple[str, int, str | None]
"""What is so long, its tokens, and what to do about it where that isn't to give fewer."""


def check_lengths(cells: Sequence[PlannedCell], until: Literal["prune", "record"] = "record") -> None:
    """Refuses what is longer than a model's context: samples, training text, prompts, perplexity blocks, answers, timed prompts.

    Where the config of a model can't be had here, its lengths are checked when its samples meet it. Where the tokenizer isn't
    at hand, prompts count as empty.

    Raises:
        BadInput: the first length that doesn't fit; or bos 'always' for a tokenizer that has no BOS token, or a chat template
            that it doesn't have.
    """
    for cell in cells:
        lengths = [] if cell.config.is_dense else list(_pruning_lengths(cell.config, cell.model))
        if until == "record":
            for protocol in cell.config.protocols:
                _check_form(cell.model, protocol.bos, protocol.chat_template, protocol.system)
                lengths += _protocol_lengths(protocol.name, protocol.prompt, cell.model, protocol.bos)
            lengths += _efficiency_lengths(cell.config)
        _check(lengths, cell.model)


def check_protocol_lengths(names: Iterable[str], settings: Evaluation, prompt: str | None, spec: ModelSpec) -> None:
    """Refuses protocols whose blocks or answers a model's context has no room for, behind `prompt`; as `check_lengths`."""
    _check_form(spec, settings.bos, settings.chat_template, settings.system)
    for name in names:
        _check(_protocol_lengths(name, prompt, spec, settings.bos), spec)


def _check_form(spec: ModelSpec, bos: Bos, chat_template: bool | str | None, system: str | None) -> None:
    tokenizer = load_tokenizer(spec) if bos == "always" or chat_template else None
    if tokenizer is not None:
        check_form(tokenizer, bos, chat_template, system)


def _check(lengths: Iterable[Length], spec: ModelSpec) -> None:
    context = _context_of(spec)
    for what, tokens, advice in lengths:
        check_length(what, tokens, context, f"model {spec.name}", advice)


def _context_of(spec: ModelSpec) -> int | None:
    config = load_config(spec)
    return None if config is None else context_length(config)


@functools.lru_cache(maxsize=256)
def prompt_tokens(spec: ModelSpec, prompt: str, bos: Bos) -> int:
    """Tokens of a prompt that stands before texts; 0 where the tokenizer isn't at hand."""
    tokenizer = load_tokenizer(spec) if prompt else None
    return 0 if tokenizer is None else len(prompt_ids(tokenizer, prompt, bos))


def _pruning_lengths(cell: CellConfig, spec: ModelSpec) -> Iterator[Length]:
    """Of calibration, the method and the recovery."""
    pruner, settings = pruner_of(cell), recovery_settings(cell)
    assert cell.calibration is not None  # cells that prune have it
    if pruner.needs_calibration:
        _check_bos("calibration.bos", cell.calibration.bos, spec)
    _check_texts(f"method {cell.method}", pruner.config, spec)
    _check_texts(f"recovery {cell.recovery}", settings, spec)
    of_method = lengths_of(pruner, cell, functools.partial(prompt_tokens, spec))
    yield from ((name if name == "calibration.seq_len" else f"{name} of method {cell.method}", n, None) for name, n in of_method.items())
    yield from ((f"{name}.max_len of recovery {cell.recovery}", text.max_len, None) for name, text in training_texts(settings).items())


def _check_texts(whose: str, settings: BaseModel, spec: ModelSpec) -> None:
    for name, text in training_texts(settings).items():
        _check_bos(f"{name}.bos of {whose}", text.bos, spec)


def _check_bos(setting: str, bos: Bos, spec: ModelSpec) -> None:
    tokenizer = load_tokenizer(spec) if bos == "always" else None
    if tokenizer is not None:
        try:
            bos_ids(tokenizer, bos)
        except BadInput:
            raise BadInput(
                f"{setting} is 'always', but the tokenizer of model {spec.name} has no BOS token; use 'tokenizer' or 'never'."
            ) from None


def _protocol_lengths(name: str, prompt: str | None, spec: ModelSpec, bos: Bos) -> Iterator[Length]:
    """Of what a protocol puts through the model whole, blocks of text and answers; a longer context is cut from the left and counted."""
    before = prompt_tokens(spec, prompt or "", bos)
    behind = f"evaluation.prompt ({before} tokens) + " if before else ""
    if before:
        yield "evaluation.prompt + a text of 2 tokens", before + 2, "give a shorter prompt"
    context = _context_of(spec)
    for entry in get_protocol(name).tasks:
        perplexity = known_tasks()[entry.task].perplexity
        where = f"of task {entry.task} in protocol {name}"
        if perplexity is not None and perplexity.kind == "blocks":
            yield f"{behind}a block {where}", before + perplexity.block, "leave the protocol out"
        elif perplexity is None and context is not None and context <= before + LONGEST_ANSWER:
            answer = answer_tokens(entry.task)
            if answer:
                yield f"{behind}a token of text + the answer {where}", before + 1 + answer, "leave the protocol out"


@functools.lru_cache(maxsize=256)
def answer_tokens(task: str) -> int:
    """New tokens that a task asks for; 0 where it only scores given answers, or the harness that knows isn't installed."""
    from prunebench.evaluation.engine.engine import DEFAULT_NEW_TOKENS
    from prunebench.evaluation.harness import task_config

    definition = known_tasks()[task]
    try:
        config = task_config(definition, definition.all_strata[0])
    except ImportError:  # the evaluator says what to install
        return 0
    if config.get("output_type") != "generate_until":
        return 0
    return int((config.get("generation_kwargs") or {}).get("max_gen_toks") or DEFAULT_NEW_TOKENS)


def _efficiency_lengths(cell: CellConfig) -> Iterator[Length]:
    settings = cell.efficiency
    if settings.enabled:
        yield "efficiency.prompt_tokens + efficiency.new_tokens", settings.prompt_tokens + settings.new_tokens, None
