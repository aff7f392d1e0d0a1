"""The pruned model as it is."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Run
from prunebench.methods.recovery.recovery import Recovery
from prunebench.methods.registry import register_recovery


@register_recovery("none")
class NoRecovery(Recovery):
    """Leaves the pruned model as it is."""

    trains = False

    @classmethod
    def training_tokens(cls, settings: dict[str, Any]) -> int | None:
        return 0

    def recover(self, model: PreTrainedModel, settings: dict[str, Any], data: PruningData, run: Run) -> dict[str, Any]:
        return {"tokens": 0}
