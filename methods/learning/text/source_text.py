"""The training text of a learning method: a named source, the calibration samples, or what the model writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.data.training_text import Example, TrainingConfig, TrainingText, bos_words
from prunebench.methods.learning.text.self_text import self_generated
from prunebench.methods.pruner import PrunerConfig, Run
from prunebench.models.budget import Budget
from prunebench.models.context import check_length, context_length
from prunebench.models.errors import BadInput
from prunebench.models.special_tokens import bos_ids


def text_to_learn(text: TrainingConfig, self_text_examples: int, model: PreTrainedModel, data: PruningData, run: Run) -> TrainingText:
    """Examples of `text.source`, which may also be 'calibration' or 'self'; these two hold nothing out for validation.

    Calibration samples begin as calibration.bos says, whatever the text's own `bos` is; an 'always' or 'never' that they don't
    keep is refused. What the model writes begins with BOS where the tokenizer of the data adds one; without tokenizer, nowhere.

    Raises:
        BadInput: the source can't be had, contradicts `text.bos`, or the model can't take it.
    """
    if text.source == "calibration":
        samples = data.require_calibration("text.source 'calibration'", model)
        if text.bos != "tokenizer" and (text.bos == "always") != bool(data.bos_tokens):
            raise BadInput(
                f"text.bos is {text.bos!r}, but the calibration samples that text.source names are {bos_words(data.bos_tokens)}; "
                "leave text.bos out and set calibration.bos."
            )
        return TrainingText(tuple(Example(tokens, data.bos_tokens) for tokens in samples), (), data.description, data.bos_tokens)
    if text.source == "self":
        bos = _bos_of(text, data)
        check_length("text.max_len", text.max_len, context_length(model.config))
        written = self_generated(model, self_text_examples, text.max_len, bos, seed=run.seed, folder=run.folder, progress=run.progress)
        return TrainingText(written, (), f"written by the model itself, {bos_words(len(bos))}", len(bos))
    return data.training_text(text, model)


def _bos_of(text: TrainingConfig, data: PruningData) -> list[int]:
    if data.tokenizer is not None:
        return bos_ids(data.tokenizer, text.bos)
    if text.bos == "always":
        raise BadInput(f"text.bos 'always' needs a tokenizer, and these data ({data.description}) were made without one.")
    return []


def fingerprint(config: PrunerConfig, budget: Budget, seed: int, examples: Sequence[Example]) -> str:
    """Hash of what decides the outcome of a run, but for the model, whose folder this is."""
    digest = hashlib.sha256(json.dumps([config.model_dump(mode="json"), budget.sparsity, budget.basis, seed], sort_keys=True).encode())
    for example in examples:
        digest.update(example.prompt_tokens.to_bytes(4, "little") + example.tokens.numpy().tobytes())
    return digest.hexdigest()
