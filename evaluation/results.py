"""What an evaluation returns: plain typed data that explains itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SourceName = Literal["data-dir", "hub", "embedded"]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Estimate(_Result):
    """A value and its standard error (None where one item can't give one)."""

    value: float
    stderr: float | None


class TaskResult(_Result):
    """One task of a protocol: its score, what it was scored on, and what the score means."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int = Field(description="items scored")
    n_available: int = Field(description="items in the split, before any limit")
    shots: int
    split: str
    source: SourceName
    source_hash: str = Field(description="SHA-256 of all rows of the split, examples included")
    higher_is_better: bool
    definition: str
    chance: float | None
    all_metrics: dict[str, tuple[float, float | None]] = Field(
        description="every metric (value, stderr); 'acc[anatomy]' is the metric on one stratum"
    )
    truncated: int = Field(description="requests cut from the left to fit the model's context")
    notes: list[str] = []
    samples_file: str | None = Field(default=None, description="parquet path relative to out_dir")


class ProtocolResult(_Result):
    """One protocol on one model."""

    protocol: str
    version: int
    definition: str
    tasks: list[TaskResult]
    mean: Estimate | None = Field(description="unweighted mean over tasks, where the protocol has one")
    chance: float | None = Field(description="what guessing gives, averaged like the tasks")
    margin: float | None = Field(description="mean minus chance")
    limit: int | None = Field(default=None, description="items a task was limited to; None for all")
    seconds: float = Field(description="wall time of this call; 0 where all tasks were kept from an earlier run")
