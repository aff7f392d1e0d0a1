"""Outcomes per item: what paired tests need, read from the parquet files beside the records."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Note
from prunebench.leaderboard.record import ProtocolScore, Record, TaskScore, cell_dir
from prunebench.leaderboard.scores import Suite

TOLERANCE = 1e-6
_NUMERIC = ("bool", "int", "float", "double", "halffloat", "uint")


@dataclass
class Outcomes:
    """Of one entry and suite: per task the (seeds, items) outcomes, in one order of items for everybody.

    `tasks` holds contributions: their mean over items is the task's value (for a perplexity, its logarithm), strata
    and token weights included. `raw` holds what was recorded, for tests of single items.
    """

    tasks: dict[str, np.ndarray]
    raw: dict[str, np.ndarray]
    items: dict[str, tuple[str, ...]]


@dataclass
class _Sample:
    items: tuple[str, ...]
    raw: np.ndarray
    contributions: np.ndarray


def contributions(values: np.ndarray, weights: np.ndarray, strata: Callable[[], list[str]], score: TaskScore) -> np.ndarray | None:
    """Numbers whose plain mean is the task's value, one an item; None when the outcomes don't give that value.

    Plain mean; else the unweighted mean over strata; for perplexities exp(-sum(log) / sum(weight)), linearised around
    the recorded value (ratio estimator), so that the mean is the logarithm of the perplexity.
    """
    n = len(values)
    if fmt.kind_of(score.metric, score.higher_is_better) == "perplexity":
        share = weights if score.metric == "token_perplexity" else np.ones(n)
        total = float(share.sum())
        if total <= 0 or score.value <= 0:
            return None
        level = -float(values.sum()) / total
        if abs(level - math.log(score.value)) > TOLERANCE:
            return None
        return level + (-values - level * share) * (n / total)
    if abs(float(values.mean()) - score.value) < TOLERANCE:
        return values
    names, index, sizes = np.unique(np.asarray(strata()), return_inverse=True, return_counts=True)
    scaled = values * n / (len(names) * sizes[index])
    return scaled if abs(float(scaled.mean()) - score.value) < TOLERANCE else None


@dataclass
class SampleReader:
    """Reads and aligns outcomes; says in `notes` what was missing. Keeps the order of items of each task seen first."""

    out_dir: Path
    notes: list[Note] = field(default_factory=list)
    orders: dict[tuple[str, str, frozenset[str]], tuple[str, ...]] = field(default_factory=dict)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4), repr=False)
    seen: dict[tuple[str, str], tuple[Any, tuple[str, ...]]] = field(default_factory=dict)
    """Per suite and task the item column read last: mostly the next file has the very same one."""

    def read(self, entry: Entry, suite: Suite) -> Outcomes | None:
        """Outcomes of every task of the suite, or None when any file or item is missing."""
        found_all = Outcomes({}, {}, {})
        done = [record for record, _ in suite.scored]
        wanted = [[_find(score, name) for _, score in suite.scored] for name in suite.task_order]
        if not all(score is not None and score.samples_file and math.isfinite(score.value) for row in wanted for score in row):
            return None
        files = [(record, score) for row in wanted for record, score in zip(done, row, strict=True) if score is not None]
        tables = iter(self.pool.map(lambda f: _fetch(self.out_dir, *f), files))  # reading parquet frees the interpreter
        for name, row in zip(suite.task_order, wanted, strict=True):
            samples = []
            for score in row:
                table = next(tables)
                assert score is not None
                sample = table if isinstance(table, str) else self._sample(table, score, suite.id)
                if isinstance(sample, str):
                    self._note(entry, suite.id, score.task, sample)
                    return None
                samples.append(sample)
            if any(s.items != samples[0].items for s in samples):
                self._note(entry, suite.id, name, "seeds were scored on different items; paired tests left out")
                return None
            found_all.items[name] = samples[0].items
            found_all.tasks[name] = np.stack([s.contributions for s in samples])
            found_all.raw[name] = np.stack([s.raw for s in samples])
        return found_all if found_all.tasks else None

    def _sample(self, table: Any, score: TaskScore, suite_id: str) -> _Sample | str:
        """The outcomes of one task, or what is wrong with them."""
        columns = set(table.column_names)
        try:
            values = _floats(table.column(score.metric))
            weights = _floats(table.column("weight")) if "weight" in columns else np.ones(len(values))
            ids = self._items(table.column("item_id"), (suite_id, score.task))
        except (ValueError, TypeError) as error:
            return f"outcomes per item can't be read ({fmt.short(str(error), 80)})"
        if ids is None or len(ids) != score.n:
            return f"the file holds {len(values)} rows, the score says {score.n} items (each once); not used"
        if not np.isfinite(values).all():
            return "outcomes hold NaN; paired tests left out"

        def strata() -> list[str]:
            return [str(v) for v in table.column("stratum").to_pylist()] if "stratum" in columns else [""] * len(values)

        given = contributions(values, weights, strata, score)
        if given is None:
            return "outcomes per item do not give the recorded score; paired tests left out"
        return self._aligned(suite_id, score.task, _Sample(ids, values, given))

    def _items(self, column: Any, key: tuple[str, str]) -> tuple[str, ...] | None:
        """The item ids as text; None when one appears twice."""
        last = self.seen.get(key)
        if last is not None and last[0].equals(column):
            return last[1]
        ids = tuple(str(i) for i in column.to_pylist())
        if len(set(ids)) != len(ids):
            return None
        self.seen[key] = (column, ids)
        return ids

    def _aligned(self, suite_id: str, task: str, sample: _Sample) -> _Sample:
        last = self.orders.get((suite_id, task, frozenset()))
        if last is not None and last is sample.items:
            return sample
        order = self.orders.setdefault((suite_id, task, frozenset(sample.items)), sample.items)
        if order == sample.items:
            self.orders[(suite_id, task, frozenset())] = sample.items
            return _Sample(order, sample.raw, sample.contributions)
        place = {item: i for i, item in enumerate(sample.items)}
        index = [place[item] for item in order]
        return _Sample(order, sample.raw[index], sample.contributions[index])

    def _note(self, entry: Entry, suite_id: str, task: str, text: str) -> None:
        self.notes.append(Note("outcomes", f"{entry.title}, {suite_id}, {fmt.short(task, 40)}: {text}."))


def _fetch(out_dir: Path, record: Record, score: TaskScore) -> Any:
    """The columns of one file of outcomes as an arrow table, or what is wrong with it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert score.samples_file is not None
    name = PurePosixPath(score.samples_file)
    path = cell_dir(out_dir, record.run.cell_id) / name
    if name.is_absolute() or ".." in name.parts or "\\" in score.samples_file or "\0" in score.samples_file:
        return "samples_file points outside the cell's folder; not read"
    try:
        with path.open("rb") as handle:
            file = pq.ParquetFile(handle)
            there = set(file.schema_arrow.names)
            for needed in ("item_id", score.metric):
                if needed not in there:
                    return f"outcomes per item can't be used: no column {fmt.short(needed, 40)}"
            kind = str(file.schema_arrow.field(score.metric).type)
            if not kind.startswith(_NUMERIC):
                return f"outcomes per item can't be used: column {fmt.short(score.metric, 40)} is {kind}, not a number"
            wanted = [c for c in dict.fromkeys(("item_id", "stratum", "weight", score.metric)) if c in there]
            return file.read(columns=wanted, use_threads=False)
    except FileNotFoundError:
        return "the file of outcomes per item is missing; unpaired test used instead"
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        return f"outcomes per item can't be read ({fmt.short(str(error), 80)})"


def _floats(column: Any) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _find(score: ProtocolScore, task: str) -> TaskScore | None:
    return next((candidate for candidate in score.tasks if fmt.short(candidate.task, 60) == task), None)
