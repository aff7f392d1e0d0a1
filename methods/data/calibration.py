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

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunebench.methods.data.contamination import evaluation_index
from prunebench.methods.data.sampling import CleanDocuments, draw_samples
from prunebench.methods.data.sources import load_corpus
from prunebench.methods.data.training_text import BOS, Example, TrainingConfig, TrainingText, bos_words, build_training_text
from prunebench.models.context import check_tokens
from prunebench.models.errors import BadInput
from prunebench.models.special_tokens import Bos, bos_ids

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
    seq_len: int = Field(128, ge=8, description="tokens a sample, BOS included")
    bos: Bos = Field("tokenizer", description=BOS.format("samples"))


@dataclass(frozen=True)
class PruningData:
    """What a method may look at while it prunes.

    Attributes:
        calibration: (num_samples, seq_len) int64 token ids of fixed-length crops, without padding; no rows where the grid
            has no calibration data.
        description: where the samples come from, in one line.
        tokenizer, seed, data_dir: what `training_text` draws with; None where the data were made without them.
        bos_tokens: so many ids at the start of every sample are its BOS.
    """

    calibration: Tensor
    description: str
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    seed: int = 0
    data_dir: Path | None = None
    bos_tokens: int = 0

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

    def check_fits(self, model: PreTrainedModel) -> None:
        """Refuses calibration samples that a model can't take.

        Raises:
            BadInput: they are longer than its context, or hold ids beyond its embedding.
        """
        check_tokens("the calibration samples", "calibration.seq_len", self.calibration, model)

    def require_calibration(self, method: str, model: PreTrainedModel | None = None) -> Tensor:
        """The calibration samples, for a method that can't do without.

        Args:
            model: what they are for; they are checked against it.
        Raises:
            BadInput: there are none, or the model can't take them.
        """
        if not self.calibration.numel():
            raise BadInput(
                f"{method} needs calibration text, and this grid gives none; set calibration: {{source: embedded}} or another source."
            )
        if model is not None:
            self.check_fits(model)
        return self.calibration

    def training_text(self, config: TrainingConfig, model: PreTrainedModel | None = None) -> TrainingText:
        """Training and validation examples of a source; equal for every method and recovery with the same config and seed.

        Args:
            model: what they are for; they are checked against it.
        Raises:
            BadInput: the source can't be had, is too small or contains evaluation items, this data has no tokenizer, or the
                model can't take the examples.
        """
        if self.tokenizer is None:
            raise BadInput(f"training text {config.source!r} needs a tokenizer, and these data ({self.description}) were made without one.")
        documents = CleanDocuments(load_corpus(config.source, self.data_dir), config.source, evaluation_index(self.data_dir))
        text = build_training_text(config, documents, self.tokenizer, torch.Generator().manual_seed(self.seed))
        if model is not None:
            check_tokens(
                "the training examples", "a training example (text.max_len)", (e.tokens for e in (*text.train, *text.validation)), model
            )
        return text


def build_pruning_data(
    config: CalibrationConfig, tokenizer: PreTrainedTokenizerBase, seed: int, data_dir: Path | None = None
) -> PruningData:
    """Draws the calibration samples of one grid seed.

    A named source is looked for in `data_dir / "calibration"`, then on the hub; 'embedded' is always the embedded
    passages. Nothing takes the place of a source that can't be had. Documents that contain an item of the evaluation
    files (those of `data_dir`, else the embedded ones) are left out; a source with many of them is refused.

    Raises:
        BadInput: unknown source, nowhere to be had, too little text for the samples, evaluation items in it, or bos 'always'
            with a tokenizer that has no BOS token.
    """
    bos = bos_ids(tokenizer, config.bos)
    documents = CleanDocuments(load_corpus(config.source, data_dir), config.source, evaluation_index(data_dir))
    generator = torch.Generator().manual_seed(seed)
    calibration = draw_samples(documents, tokenizer, config.num_samples, config.seq_len, generator, bos)
    samples = f"{config.num_samples} samples of {config.seq_len} tokens {bos_words(len(bos))}"
    description = f"{config.source} ({documents.corpus.origin}), {samples}{documents.note}"
    return PruningData(calibration, description, tokenizer, seed, data_dir, len(bos))
