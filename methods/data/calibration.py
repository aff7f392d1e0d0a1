"""Calibration samples and training text: the same for every method of a grid.

config = CalibrationConfig(source="c4", num_samples=128, seq_len=128)
data = build_pruning_data(config, tokenizer, seed, data_dir)
for tokens in data.calibration_batches(8): ...            # (8, 128) int64
text = data.training_text(TrainingConfig(source="alpaca"))  # examples for learning methods and recoveries
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunebench.methods.data.contamination import evaluation_index
from prunebench.methods.data.sampling import CleanDocuments, draw_samples
from prunebench.methods.data.sources import load_corpus
from prunebench.methods.data.training_text import Example, TrainingConfig, TrainingText, build_training_text
from prunebench.models.errors import BadInput

__all__ = [
    "CalibrationConfig",
    "Example",
    "PruningData",
    "TrainingConfig",
    "TrainingText",
    "build_pruning_data",
]


class CalibrationConfig(BaseModel):
    """The calibration text of a grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(
        "embedded",
        min_length=1,
        description="embedded (passages of SQuAD, CoQA and DROP), c4, wikitext2, books, alpaca, alpaca_gpt4, dolly, "
        "the name of a file DIR/calibration/NAME.jsonl, or a hub id ORG/NAME",
    )
    num_samples: int = Field(32, ge=1, description="samples")
    seq_len: int = Field(128, ge=8, description="tokens a sample")


class CalibrationChoice(Protocol):
    """What `build_pruning_data` reads of a config; `CalibrationConfig` has it, and so has the grid's own block."""

    @property
    def source(self) -> str: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def seq_len(self) -> int: ...


@dataclass(frozen=True)
class PruningData:
    """What a method may look at while it prunes.

    Attributes:
        calibration: (num_samples, seq_len) int64 token ids of fixed-length crops, without padding; no rows where the grid
            has no calibration data.
        description: where the samples come from, in one line.
        tokenizer, seed, data_dir: what `training_text` draws with; None where the data were made without them.
    """

    calibration: Tensor
    description: str
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    seed: int = 0
    data_dir: Path | None = None

    @classmethod
    def none(cls) -> PruningData:
        """No data, for methods that look at weights only."""
        return cls(torch.empty(0, 0, dtype=torch.int64), "none")

    @cached_property
    def sha256(self) -> str:
        """Hash of the calibration token ids (int64, row by row)."""
        return hashlib.sha256(self.calibration.contiguous().numpy().tobytes()).hexdigest()

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole calibration set."""
        return self.calibration.numel()

    def calibration_batches(self, batch_size: int) -> Iterator[Tensor]:
        """Batches (at most batch_size, seq_len) in a fixed order."""
        yield from self.calibration.split(batch_size) if len(self.calibration) else ()

    def require_calibration(self, method: str) -> Tensor:
        """The calibration samples, for a method that can't do without.

        Raises:
            BadInput: there are none.
        """
        if not self.calibration.numel():
            raise BadInput(
                f"{method} needs calibration text, and this grid gives none; set calibration: {{source: embedded}} or another source."
            )
        return self.calibration

    def training_text(self, config: TrainingConfig) -> TrainingText:
        """Training and validation examples of a source; equal for every method and recovery with the same config and seed.

        Raises:
            BadInput: the source can't be had, is too small or contains evaluation items, or this data has no tokenizer.
        """
        if self.tokenizer is None:
            raise BadInput(f"training text {config.source!r} needs a tokenizer, and these data ({self.description}) were made without one.")
        documents = CleanDocuments(load_corpus(config.source, self.data_dir), config.source, evaluation_index(self.data_dir))
        return build_training_text(config, documents, self.tokenizer, torch.Generator().manual_seed(self.seed))


def build_pruning_data(
    config: CalibrationChoice, tokenizer: PreTrainedTokenizerBase, seed: int, data_dir: Path | None = None
) -> PruningData:
    """Draws the calibration samples of one grid seed.

    A named source is looked for in `data_dir / "calibration"`, then on the hub; 'embedded' is always the embedded
    passages. Nothing takes the place of a source that can't be had. Documents that contain an item of the evaluation
    files (those of `data_dir`, else the embedded ones) are left out; a source with many of them is refused.

    Raises:
        BadInput: unknown source, nowhere to be had, too little text for the samples, or evaluation items in it.
    """
    documents = CleanDocuments(load_corpus(config.source, data_dir), config.source, evaluation_index(data_dir))
    generator = torch.Generator().manual_seed(seed)
    calibration = draw_samples(documents, tokenizer, config.num_samples, config.seq_len, generator)
    description = f"{config.source} ({documents.corpus.origin}), {config.num_samples} samples of {config.seq_len} tokens{documents.note}"
    return PruningData(calibration, description, tokenizer, seed, data_dir)
