"""The interface of a recovery: what happens to every pruned model after slicing, equal for all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Run
from prunebench.methods.settings import resolved


class RecoveryConfig(BaseModel):
    """Settings of one recovery; subclass it with typed fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Recovery(ABC):
    """One way to recover a pruned model. Subclass, set `name` and `Config`, implement `recover`, and register it."""

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]] = RecoveryConfig
    trains: ClassVar[bool] = True
    """False for a recovery that reads no text."""

    @classmethod
    def resolve(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Returns `settings` with the defaults filled in.

        Raises:
            BadInput: an unknown key or a value out of range.
        """
        return resolved(cls.Config, settings, f"recovery {cls.name}")

    @classmethod
    def training_tokens(cls, settings: dict[str, Any]) -> int | None:
        """Tokens that it trains on, for the estimates of `plan`; None where the text's length decides."""
        return None

    @abstractmethod
    def recover(self, model: PreTrainedModel, settings: dict[str, Any], data: PruningData, run: Run) -> dict[str, Any]:
        """Trains the sliced `model` in place and merges what it learnt; its shapes stay.

        Returns:
            {"tokens": training tokens that it saw, ...other facts for the record}.
        """
