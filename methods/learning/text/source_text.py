"""The training text of a learning method: a named source, the calibration samples, or what the model writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.data.training_text import Example, TrainingConfig, TrainingText
from prunebench.methods.learning.text.self_text import self_generated
from prunebench.methods.pruner import PrunerConfig, Run
from prunebench.models.budget import Budget


def text_to_learn(text: TrainingConfig, self_text_examples: int, model: PreTrainedModel, data: PruningData, run: Run) -> TrainingText:
    """Examples of `text.source`, which may also be 'calibration' or 'self'; these two hold nothing out for validation.

    Raises:
        BadInput: the source can't be had.
    """
    if text.source == "calibration":
        samples = data.require_calibration("text.source 'calibration'")
        return TrainingText(tuple(Example(tokens, 0) for tokens in samples), (), data.description)
    if text.source == "self":
        written = self_generated(model, self_text_examples, text.max_len, seed=run.seed, folder=run.folder, progress=run.progress)
        return TrainingText(written, (), "written by the model itself")
    return data.training_text(text)


def fingerprint(config: PrunerConfig, budget: Budget, seed: int, examples: Sequence[Example]) -> str:
    """Hash of what decides the outcome of a run, but for the model, whose folder this is."""
    digest = hashlib.sha256(json.dumps([config.model_dump(mode="json"), budget.sparsity, budget.basis, seed], sort_keys=True).encode())
    for example in examples:
        digest.update(example.prompt_tokens.to_bytes(4, "little") + example.tokens.numpy().tobytes())
    return digest.hexdigest()
