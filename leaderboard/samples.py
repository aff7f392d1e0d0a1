"""Outcomes per item: what paired tests need, read from the parquet files beside the records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from leaderboard import formatting as fmt
from leaderboard.collect import Entry, Note, Suite
from leaderboard.record import Record, TaskScore, cell_dir

_NUMERIC = ("bool", "int", "float", "double", "halffloat", "uint")


@dataclass
class Outcomes:
    """Of one entry and suite: per task the (seeds, items) outcomes, in one order of items for everybody."""

    tasks: dict[str, np.ndarray]
    items: dict[str, tuple[str, ...]]


@dataclass
class SampleReader:
    """Reads and aligns outcomes; says in `notes` what was missing. Keeps the order of items of each task seen first."""

    out_dir: Path
    notes: list[Note] = field(default_factory=list)
    orders: dict[tuple[str, str, frozenset[str]], tuple[str, ...]] = field(default_factory=dict)

    def read(self, entry: Entry, suite: Suite) -> Outcomes | None:
        """Outcomes of every task of the suite, or None when any file or item is missing."""
        tasks: dict[str, np.ndarray] = {}
        items: dict[str, tuple[str, ...]] = {}
        for name in suite.task_order:
            rows = []
            for record in entry.done:
                score = _find(record, suite, name)
                if score is None:
                    return None
                found = self._read_one(entry, record, score, suite.id)
                if found is None:
                    return None
                rows.append(found)
            if any(ids != rows[0][0] for ids, _ in rows):
                self._note(entry, suite.id, name, "seeds were scored on different items; paired tests left out")
                return None
            items[name] = rows[0][0]
            tasks[name] = np.stack([values for _, values in rows])
        return Outcomes(tasks, items) if tasks else None

    def _read_one(self, entry: Entry, record: Record, score: TaskScore, suite_id: str) -> tuple[tuple[str, ...], np.ndarray] | None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not score.samples_file:
            return None
        folder = cell_dir(self.out_dir, record.run.cell_id).resolve()
        path = (folder / score.samples_file).resolve()
        if not path.is_relative_to(folder):
            self._note(entry, suite_id, score.task, "samples_file points outside the cell's folder; not read")
            return None
        if not path.is_file():
            self._note(entry, suite_id, score.task, "the file of outcomes per item is missing; unpaired test used instead")
            return None
        try:
            table = pq.read_table(path, columns=["item_id", score.metric], use_threads=False)
            kind = str(table.schema.field(score.metric).type)
            if not kind.startswith(_NUMERIC):
                raise ValueError(f"column {score.metric} is {kind}, not a number")
            ids = [str(i) for i in table.column("item_id").to_pylist()]
            values = np.asarray(table.column(score.metric).to_numpy(zero_copy_only=False), dtype=np.float64)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            self._note(entry, suite_id, score.task, f"outcomes per item can't be read ({fmt.short(str(error), 80)})")
            return None
        if len(ids) != score.n or len(set(ids)) != len(ids):
            self._note(entry, suite_id, score.task, f"the file holds {len(set(ids))} items, the score says {score.n}; not used")
            return None
        if not np.isfinite(values).all():
            self._note(entry, suite_id, score.task, "outcomes hold NaN; paired tests left out")
            return None
        return self._aligned(suite_id, score.task, ids, values)

    def _aligned(self, suite_id: str, task: str, ids: list[str], values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        order = self.orders.setdefault((suite_id, task, frozenset(ids)), tuple(ids))
        if order != tuple(ids):
            place = {item: i for i, item in enumerate(ids)}
            values = values[[place[item] for item in order]]
        return order, values

    def _note(self, entry: Entry, suite_id: str, task: str, text: str) -> None:
        self.notes.append(Note("outcomes", f"{entry.title}, {suite_id}, {fmt.short(task, 40)}: {text}."))


def _find(record: Record, suite: Suite, task: str) -> TaskScore | None:
    for score in record.metrics.scores:
        if score.protocol == suite.protocol and score.version == suite.version:
            for candidate in score.tasks:
                if fmt.short(candidate.task, 60) == task:
                    return candidate
    return None
