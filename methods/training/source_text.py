"""The training text of a learning method: a named source, the calibration samples, or what the model writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from transformers import PreTrainedModel

from methods.calibration.training_text import Example, TrainingConfig
from methods.data import PruningData
from methods.pruner import PrunerConfig, Run
from methods.training.self_text import self_generated
from models.budget import Budget


def training_examples(
    text: TrainingConfig, self_text_examples: int, model: PreTrainedModel, data: PruningData, run: Run
) -> tuple[Example, ...]:
    """Training examples of `text.source`, which may also be 'calibration' or 'self'.

    Raises:
        BadInput: the source can't be had.
    """
    if text.source == "calibration":
        return tuple(Example(tokens, 0) for tokens in data.require_calibration("text.source 'calibration'"))
    if text.source == "self":
        return self_generated(model, self_text_examples, text.max_len, seed=run.seed, folder=run.folder, progress=run.progress)
    return data.training_text(text).train


def fingerprint(config: PrunerConfig, budget: Budget, seed: int, examples: Sequence[Example]) -> str:
    """Hash of what decides the outcome of a run, but for the model, whose folder this is."""
    digest = hashlib.sha256(json.dumps([config.model_dump(mode="json"), budget.sparsity, budget.basis, seed], sort_keys=True).encode())
    for example in examples:
        digest.update(example.prompt_tokens.to_bytes(4, "little") + example.tokens.numpy().tobytes())
    return digest.hexdigest()
