"""What each stage of a cell found out: typed, kept as JSON in its stamp, read again for the stages after and for the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field

from prunebench.experiments.config import Part
from prunebench.leaderboard.record import LayerShape

Curves = dict[str, list[tuple[float, float]]]
"""Name -> (step, value), in order."""


class Counts(Part):
    """Parameters of a model: all, and those of its decoder layers (None where the anatomy can't read it)."""

    total: int
    blocks: int | None


class Size(Part):
    """How large a model is, beside its dense one.

    Attributes:
        shapes: per layer what stays; empty where the anatomy can't read the model.
        hidden: kept and dense width of the residual stream.
    """

    dense: Counts
    kept: Counts
    shapes: tuple[LayerShape, ...] = ()
    hidden: tuple[int | None, int | None] = (None, None)


class Pruned(Part):
    """What pruning left.

    Attributes:
        data: provenance entries of the texts that were read.
        changed_weights: tensors whose values the method changed.
        unstructured_zeros: share of the projections' weights that are zero, of methods that make nothing smaller.
    """

    identity: dict[str, Any]
    size: Size
    masks_sha256: str
    curves: Curves
    data: tuple[dict[str, Any], ...]
    changed_weights: int
    unstructured_zeros: float | None

    @property
    def tokens_seen(self) -> int | None:
        """Training tokens as the method counted them; None where it logged no count."""
        seen = self.curves.get("tokens_seen")
        return int(seen[-1][1]) if seen else None


class Sliced(Part):
    """The checkpoint that slicing wrote: bytes of its tensors."""

    disk_bytes: int


class Recovered(Part):
    """What a recovery trained on, and what else it told."""

    tokens: int
    data: tuple[dict[str, Any], ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict)
    curves: Curves
    disk_bytes: int


class Evaluated(Part):
    """Scores of every protocol, as JSON; of the dense model its size, too."""

    scores: tuple[dict[str, Any], ...]
    identity: dict[str, Any]
    size: Size | None = None
    disk_bytes: int | None = None


class Measured(Part):
    """Speed and memory, as `evaluation.measure_efficiency` gives them."""

    efficiency: dict[str, Any]


ResultT = TypeVar("ResultT", Pruned, Sliced, Recovered, Evaluated, Measured)


@dataclass(frozen=True)
class Results:
    """What is known of a cell so far."""

    prune: Pruned | None = None
    slice: Sliced | None = None
    recover: Recovered | None = None
    evaluate: Evaluated | None = None
    efficiency: Measured | None = None

    @classmethod
    def of(cls, stamps: Mapping[str, Mapping[str, Any]]) -> Results:
        """Reads the results out of stamps, by the names of the stages."""

        def read(name: str, kind: type[ResultT]) -> ResultT | None:
            return kind.model_validate(stamps[name]["result"]) if name in stamps else None

        return cls(
            read("prune", Pruned),
            read("slice", Sliced),
            read("recover", Recovered),
            read("evaluate", Evaluated),
            read("efficiency", Measured),
        )

    @property
    def size(self) -> Size | None:
        """Of the pruned model, or of the dense one."""
        return self.prune.size if self.prune else self.evaluate.size if self.evaluate else None

    @property
    def disk_bytes(self) -> int | None:
        """Of what is evaluated."""
        last = self.recover or self.slice or self.evaluate
        return last.disk_bytes if last else None

    @property
    def identity(self) -> dict[str, Any]:
        """Of the model that was loaded."""
        return next((found.identity for found in (self.prune, self.evaluate) if found and found.identity), {})

    @property
    def data(self) -> list[dict[str, Any]]:
        """Provenance of the texts that pruning and recovery read."""
        return [entry for found in (self.prune, self.recover) if found for entry in found.data]
