"""Per-item outcomes: kept per finished part of a task so that a cut run goes on, and written as parquet."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

FORMAT = 2
"""Version of the kept files; a change makes every kept part void."""


class ItemOutcome(BaseModel):
    """One scored item.

    metrics: the harness's metrics of this item. choice_loglikelihoods: one a choice (or one for the whole text).
    weight: tokens scored, for perplexities. majority_key: the gold answer as text, for the majority baseline.
    """

    model_config = ConfigDict(extra="forbid")

    item_id: str
    stratum: str
    metrics: dict[str, float]
    choice_loglikelihoods: list[float] = []
    response: str | None = None
    gold: str | None = None
    weight: float = 1.0
    num_choices: int = 0


class Part(BaseModel):
    """One stratum of a task, scored."""

    model_config = ConfigDict(extra="forbid")

    outcomes: list[ItemOutcome]
    truncated: int
    n_available: int
    split: str
    source: str
    origin: str
    sha256: str
    note: str | None = None
    notes: list[str] = []
    majority: float | None = None


def key_of(description: dict[str, Any]) -> str:
    """Hash of everything that a part's outcomes depend on."""
    text = json.dumps({"format": FORMAT, **description}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_atomically(path: Path, write: Any) -> None:
    """Calls `write(temporary path)` and renames the result: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


class PartStore:
    """Finished parts in `folder`; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json"

    def load(self, key: str) -> Part | None:
        """The kept part, or None where there is none or it can't be read."""
        if self.folder is None or not self._path(key).is_file():
            return None
        try:
            return Part.model_validate_json(self._path(key).read_text(encoding="utf-8"))
        except ValueError:
            return None

    def save(self, key: str, part: Part) -> None:
        if self.folder is not None:
            text = part.model_dump_json()
            write_atomically(self._path(key), lambda path: path.write_text(text, encoding="utf-8"))


def write_samples(path: Path, outcomes: list[ItemOutcome]) -> None:
    """Columns: item_id, stratum, one a metric, choice_loglikelihoods, response, gold, weight."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted({name for outcome in outcomes for name in outcome.metrics})
    columns: dict[str, Any] = {
        "item_id": pa.array([outcome.item_id for outcome in outcomes], pa.string()),
        "stratum": pa.array([outcome.stratum for outcome in outcomes], pa.string()),
    }
    for name in names:
        columns[name] = pa.array([outcome.metrics.get(name) for outcome in outcomes], pa.float64())
    columns["choice_loglikelihoods"] = pa.array([outcome.choice_loglikelihoods for outcome in outcomes], pa.list_(pa.float64()))
    columns["response"] = pa.array([outcome.response for outcome in outcomes], pa.string())
    columns["gold"] = pa.array([outcome.gold for outcome in outcomes], pa.string())
    columns["weight"] = pa.array([outcome.weight for outcome in outcomes], pa.float64())
    table = pa.table(columns)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))
