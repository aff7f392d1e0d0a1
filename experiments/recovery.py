"""What happens to every pruned model after slicing, equal for all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ValidationError

from prunebench.experiments.config import Part
from prunebench.experiments.suggest import sentence, unknown
from prunebench.methods.recovery import LoraRecoveryConfig, recover_lora
from prunebench.models.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunebench.methods.data import PruningData
    from prunebench.methods.pruner import Run


class Recovery(ABC):
    """One way to recover a pruned model."""

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]]
    trains: ClassVar[bool]

    @classmethod
    def resolve(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` with the defaults filled in.

        Raises:
            BadInput: an unknown key or a value out of range.
        """
        try:
            return cls.Config.model_validate(settings).model_dump(mode="json")
        except ValidationError as error:
            raise BadInput(sentence(error, cls.Config, f"settings of recovery {cls.name}")) from None

    @classmethod
    @abstractmethod
    def training_tokens(cls, settings: dict[str, Any]) -> int | None:
        """Tokens that it trains on; None where the text's length decides."""

    @abstractmethod
    def recover(self, model: PreTrainedModel, settings: dict[str, Any], data: PruningData, run: Run) -> dict[str, Any]:
        """Trains the sliced `model` in place and merges what it learnt; returns the tokens that it saw, and other facts."""


class NoRecovery(Recovery):
    """The pruned model as it is."""

    name = "none"
    Config = Part
    trains = False

    @classmethod
    def training_tokens(cls, settings: dict[str, Any]) -> int | None:
        return 0

    def recover(self, model: PreTrainedModel, settings: dict[str, Any], data: PruningData, run: Run) -> dict[str, Any]:
        return {"tokens": 0}


class Lora(Recovery):
    """LoRA on instructions, LLM-Pruner's recipe; see `methods.recovery`."""

    name = "lora"
    Config = LoraRecoveryConfig
    trains = True

    @classmethod
    def training_tokens(cls, settings: dict[str, Any]) -> int | None:
        return LoraRecoveryConfig.model_validate(settings).token_budget

    def recover(self, model: PreTrainedModel, settings: dict[str, Any], data: PruningData, run: Run) -> dict[str, Any]:
        done = recover_lora(model, LoraRecoveryConfig.model_validate(settings), data, run)
        text = {"purpose": "recovery", "source": done.text, "sha256": done.text_sha256}
        losses = {"validation_before": done.validation_before, "validation_after": done.validation_after}
        return {"tokens": done.tokens, "steps": done.steps, "data": [text], **losses}


RECOVERIES: dict[str, type[Recovery]] = {recovery.name: recovery for recovery in (NoRecovery, Lora)}


def get_recovery(name: str) -> type[Recovery]:
    if name not in RECOVERIES:
        raise unknown("recovery", name, RECOVERIES)
    return RECOVERIES[name]
