"""The interface of a pruning method: one class, one required method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.data.training_text import training_texts
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks
from prunebench.models.special_tokens import Bos

Progress = Callable[[str, int, int], None]
CountPrompt = Callable[[str, Bos], int]


class PrunerConfig(BaseModel):
    """Hyper-parameters of one method; subclass it with typed fields whose defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=PrunerConfig)


@dataclass(frozen=True)
class Support:
    """Whether a method can prune a model; `reason` tells the user what to do where it can't."""

    ok: bool
    reason: str = ""

    @classmethod
    def yes(cls) -> Support:
        return cls(True)

    @classmethod
    def no(cls, reason: str) -> Support:
        return cls(False, reason)


def _no_progress(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _no_metrics(step: int, values: dict[str, float]) -> None:
    """Metrics that nobody records."""


@dataclass(frozen=True)
class Run:
    """What a method is told of the run that it is part of.

    Attributes:
        seed: derived for this cell and this purpose; use `generator()`, never the global state.
        device: where the model is.
        folder: the method's own checkpoints, kept between interrupted runs of the same cell.
        progress: call as progress(label, done, total) in every loop that may last over a few seconds.
        log_metrics: call as log_metrics(step, {"loss": 1.5}); the values end up as curves in the record.
    """

    seed: int
    device: torch.device
    folder: Path
    progress: Progress = field(default=_no_progress)
    log_metrics: Callable[[int, dict[str, float]], None] = field(default=_no_metrics)

    def generator(self) -> torch.Generator:
        """A fresh CPU random generator seeded for this run; equal at every call."""
        return torch.Generator().manual_seed(self.seed)


class Pruner(ABC, Generic[ConfigT]):
    """One pruning method. Subclass, set `name` and `Config`, implement `prune`.

    The framework slices, checks the budget, recovers, saves, times and evaluates; a method only chooses.
    """

    name: ClassVar[str]
    Config: ClassVar[type[PrunerConfig]] = PrunerConfig
    needs_calibration: ClassVar[bool] = True
    structured: ClassVar[bool] = True
    """False for references that zero single weights: they return full masks, nothing gets smaller, no budget is checked."""

    def __init__(self, config: ConfigT | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @classmethod
    def quick_config(cls) -> PrunerConfig:
        """Settings that the conformance kit checks with, on tiny models; a method that trains overrides it with few steps."""
        return cls.Config()

    def supports(self, anatomy: Anatomy) -> Support:
        """Says no with a reason that the user can act on; the leaderboard shows it as 'skipped: <reason>'."""
        return Support.yes()

    def training_tokens(self) -> int | None:
        """Tokens that the method trains on with its settings, for the estimates of `plan`; None where the text's length decides."""
        return 0

    def lengths(self, seq_len: int, prompt_tokens: CountPrompt) -> dict[str, int]:
        """Tokens of the longest sequences that the method hands to the model, by the setting that makes them so long.

        A run is refused before it starts where one is more than the model's context. By default these are the calibration
        samples and every `TrainingConfig` among the settings; a method that hands over longer sequences overrides this.

        Args:
            seq_len: tokens of a calibration sample.
            prompt_tokens: called with a text that stands before others and its `bos`, gives its number of tokens; 0 where the
                tokenizer isn't at hand yet.
        """
        texts = {f"{name}.max_len": text.max_len for name, text in training_texts(self.config).items() if text.source != "calibration"}
        return ({"calibration.seq_len": seq_len} if self.needs_calibration else {}) | texts

    @abstractmethod
    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        """Chooses what stays.

        Args:
            model: this cell's own copy, in eval mode: the weights that stay may change (merged LoRA, biases that
                compensate), its shapes may not.
            budget: how many parameters must go, and what is counted.
            data: calibration tokens and training text, the same for every method of a grid.
            run: seed, device, folder, progress, metrics.
        """
