"""Which kinds of units a method may remove with its settings, so that a model is rehearsed on these."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What can be taken from a model (or added: biases that make up for it)."""

    HEADS = "attention heads"
    CHANNELS = "MLP channels"
    SUBLAYERS = "sub-layers"
    WIDTH = "residual dimensions"
    BIASES = "output biases"

    @property
    def in_words(self) -> str:
        """How a sentence says that a model has lost some of these."""
        return "with biases on its output projections" if self is Kind.BIASES else f"without some of its {self}"


ALL_KINDS = frozenset(Kind)
BLOCKS = frozenset({Kind.HEADS, Kind.CHANNELS})
OUR_ALLOCATIONS = ("uniform", "global")


def removed_kinds(method: str, settings: dict[str, Any]) -> frozenset[Kind]:
    """What a method may remove with its resolved settings; everything for a method that isn't built in."""
    if settings.get("allocation", "uniform") not in OUR_ALLOCATIONS:  # somebody else's may take whole sub-layers
        return ALL_KINDS
    match method:
        case "magnitude" | "random" | "wanda_sp":
            return BLOCKS
        case "wanda" | "sparsegpt":  # single weights, which stay where they are
            return frozenset()
        case "flap":
            return BLOCKS | _where(settings, compensate=Kind.BIASES)
        case "llm_pruner":
            by_strategy = {"block": BLOCKS, "channel": {Kind.WIDTH}, "layer": {Kind.SUBLAYERS, Kind.CHANNELS}}
            return frozenset(by_strategy.get(settings["strategy"], ALL_KINDS))
        case "block_influence":
            return frozenset({Kind.SUBLAYERS, Kind.CHANNELS})
        case "compresso":
            found = _where(settings, head_gates=Kind.HEADS, channel_gates=Kind.CHANNELS, hidden_gates=Kind.WIDTH)
            return found | ({Kind.SUBLAYERS} if found & BLOCKS else set())
        case "nuteprune":
            return BLOCKS | {Kind.SUBLAYERS} | _where(settings, hidden_gates=Kind.WIDTH)
    return ALL_KINDS


def _where(settings: dict[str, Any], **kinds: Kind) -> frozenset[Kind]:
    """The kinds whose setting is on."""
    return frozenset(kind for name, kind in kinds.items() if settings[name])
