"""Records to entries: one entry is one row, the cells of one setting that differ in nothing but the seed."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.record import ProtocolScore, Record, TaskScore
from prunebench.leaderboard.statistics import (
    Interval,
    log_normal_interval,
    normal_interval,
    seed_mean,
    wilson_interval,
)
from prunebench.leaderboard.variants import in_words, set_apart

MEAN_TOLERANCE = 1e-6
SYNTHETIC = " (synthetic)"
_STATUS_ORDER = ("done", "interrupted", "skipped", "out_of_memory", "failed")


@dataclass(frozen=True)
class Note:
    """Something that a reader of the page must know about the data."""

    kind: str
    text: str


@dataclass
class Score:
    """One number with its interval: a task or a suite mean, over the seeds of an entry."""

    metric: str
    kind: fmt.Kind
    value: float
    stderr: float | None
    interval: Interval | None
    n: int
    higher_is_better: bool
    chance: float | None
    definition: str
    seeds: int = 1

    @property
    def margin(self) -> float | None:
        """Value minus what guessing gives."""
        return None if self.chance is None else self.value - self.chance

    @property
    def is_at_chance(self) -> bool:
        """The interval reaches the chance level: not told apart from guessing."""
        return self.chance is not None and self.interval is not None and self.interval.low <= self.chance


@dataclass
class Suite:
    """One protocol's scores of one entry."""

    id: str
    protocol: str
    version: str
    definition: str
    signature: tuple[Any, ...]
    tasks: dict[str, Score]
    mean: Score | None
    weights: list[float] | None
    task_order: list[str]


@dataclass
class Entry:
    """One row: same model, method, settings, sparsity, basis and recovery; one or more seeds."""

    id: int
    model: str
    method: str
    sparsity: float | None
    basis: str
    recovery: str
    synthetic: bool
    records: list[Record] = field(repr=False)
    variant: str = ""
    suites: dict[str, Suite] = field(default_factory=dict, repr=False)

    @cached_property
    def done(self) -> list[Record]:
        return [r for r in self.records if r.run.status == "done"]

    @property
    def is_dense(self) -> bool:
        return self.sparsity is None

    @property
    def status(self) -> str:
        """Of the entry as a whole: done only when every seed is."""
        return max((r.run.status for r in self.records), key=_STATUS_ORDER.index)

    @property
    def label(self) -> str:
        """Method and, where one method appears with several settings, what sets it apart."""
        name = fmt.short(self.method)
        return f"{name} · {self.variant}" if self.variant else name

    @property
    def full_label(self) -> str:
        return self.label + (f" + {fmt.short(self.recovery, 24)}" if self.recovery != "none" else "")

    @property
    def title(self) -> str:
        parts = [fmt.model_label(self.model), self.full_label]
        if self.sparsity is not None:
            parts.append(fmt.sparsity(self.sparsity))
        return " ".join(parts)

    def block(self) -> tuple[Any, ...]:
        """Entries of one block compete with each other."""
        return (self.model, self.sparsity, self.basis, self.recovery, self.synthetic)

    def mean_of(self, name: str) -> float | None:
        """Mean over the finished cells of a field of `metrics`."""
        return mean_known(getattr(r.metrics, name) for r in self.done)

    def efficiency(self, name: str) -> float | None:
        return mean_known(getattr(r.metrics.efficiency, name) for r in self.done if r.metrics.efficiency)

    def stage_seconds(self, name: str) -> float | None:
        return mean_known(sum(s.seconds for s in r.run.stages if s.name == name) for r in self.done if _has(r, name))

    def stage_tokens(self, name: str) -> float | None:
        found = [[s.tokens for s in r.run.stages if s.name == name and s.tokens is not None] for r in self.done]
        return mean_known(sum(tokens) for tokens in found if tokens)

    def stage_peak(self, name: str) -> float | None:
        return mean_known(s.peak_memory_bytes for r in self.done for s in r.run.stages if s.name == name)


def _has(record: Record, stage: str) -> bool:
    return any(s.name == stage for s in record.run.stages)


def mean_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None when none is."""
    known = [float(v) for v in values if v is not None and not math.isnan(v)]
    return sum(known) / len(known) if known else None


def collect(records: list[Record]) -> tuple[list[Entry], list[Note]]:
    """Group records into entries, in a stable order: model, dense first, sparsity, recovery, method."""
    notes: list[Note] = []
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        run = record.run
        settings = json.dumps({k: v for k, v in run.config.items() if k != "seed"}, sort_keys=True, default=str)
        groups[(run.synthetic, run.model, run.sparsity, run.basis, run.recovery, run.method, settings)].append(record)
    for group in groups.values():
        group.sort(key=lambda r: (r.run.seed, r.run.cell_id))
    order = sorted(groups, key=lambda k: (k[0], k[1], -1.0 if k[2] is None else k[2], *k[3:]))
    entries = [
        Entry(i, model=k[1], method=k[5], sparsity=k[2], basis=k[3], recovery=k[4], synthetic=k[0], records=groups[k])
        for i, k in enumerate(order)
    ]
    _name_variants(entries)
    versions = _suite_ids(records)
    for entry in entries:
        _score(entry, versions, notes)
    notes += _run_notes(entries)
    return entries, notes


def _run_notes(entries: list[Entry]) -> list[Note]:
    notes = []
    for entry in entries:
        seeds = [r.run.seed for r in entry.records]
        if len(set(seeds)) < len(seeds):
            notes.append(Note("duplicate", f"{entry.title}: one seed appears in several records; each counts as a repeat."))
        if entry.basis not in ("total", "blocks"):
            notes.append(Note("basis", f"{entry.title}: unknown sparsity basis {fmt.short(entry.basis, 24)!r}."))
    return notes


def _name_variants(entries: list[Entry]) -> None:
    """Where one method appears in one block with several settings, say what differs."""
    same: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        same[(*entry.block(), entry.method)].append(entry)
    for group in same.values():
        if len(group) == 1:
            continue
        apart = set_apart([{key: value for key, value in entry.records[0].run.config.items() if key != "seed"} for entry in group])
        for entry, told in zip(group, apart, strict=True):
            entry.variant = fmt.short(in_words(told), 48)


def _is_synthetic(record: Record, score: ProtocolScore) -> bool:
    return record.run.synthetic or any(t.source == "synthetic" for t in score.tasks)


def _suite_ids(records: list[Record]) -> dict[tuple[str, str, bool], str]:
    """Column names: the protocol; its version where several are present; 'synthetic' always when it is."""
    versions: dict[str, set[str]] = defaultdict(set)
    found: dict[tuple[str, str, bool], str] = {}
    for record in records:
        for score in record.metrics.scores:
            versions[score.protocol].add(score.version)
            found[(score.protocol, score.version, _is_synthetic(record, score))] = ""
    for protocol, version, synthetic in found:
        name = fmt.short(protocol, 40)
        if len(versions[protocol]) > 1:
            name += f" v{fmt.short(version, 16) or '?'}"
        found[(protocol, version, synthetic)] = name + (SYNTHETIC if synthetic else "")
    return found


def _score(entry: Entry, ids: dict[tuple[str, str, bool], str], notes: list[Note]) -> None:
    by_suite: dict[str, list[tuple[Record, ProtocolScore]]] = defaultdict(list)
    for record in entry.done:
        for score in record.metrics.scores:
            by_suite[ids[(score.protocol, score.version, _is_synthetic(record, score))]].append((record, score))
    if entry.done and not by_suite:
        notes.append(Note("no scores", f"{entry.title}: finished without any score."))
    for suite_id, found in by_suite.items():
        scores = [s for _, s in found]
        if len(scores[0].tasks) > 1 and all(s.mean is None for s in scores):
            for name in dict.fromkeys(t.task for t in scores[0].tasks):
                part = [s.model_copy(update={"tasks": [t for t in s.tasks if t.task == name]}) for s in scores]
                own = _part_id(suite_id, name)
                entry.suites[own] = _suite(entry, own, [p for p in part if p.tasks], notes)
        else:
            entry.suites[suite_id] = _suite(entry, suite_id, scores, notes)


def _part_id(suite_id: str, task: str) -> str:
    """A protocol without a mean is shown task by task."""
    base = suite_id.removesuffix(SYNTHETIC)
    return f"{base}: {fmt.short(task, 40)}" + (SYNTHETIC if base != suite_id else "")


def _suite(entry: Entry, suite_id: str, scores: list[ProtocolScore], notes: list[Note]) -> Suite:
    first = scores[0]
    where = f"{entry.title}, {suite_id}"
    columns: dict[str, list[TaskScore]] = defaultdict(list)
    for score in scores:
        for task in score.tasks:
            columns[task.task].append(task)
    tasks: dict[str, Score] = {}
    for name, seeds in columns.items():
        usable = []
        for task in seeds:
            if task.n == 0:
                notes.append(Note("empty task", f"{where}: task {fmt.short(name, 40)} has no documents; it gives no score."))
            elif not math.isfinite(task.value):
                notes.append(Note("NaN score", f"{where}: {fmt.short(name, 40)} ({task.metric}) is {task.value}; left out."))
            else:
                usable.append(task)
        if usable:
            tasks[fmt.short(name, 60)] = _task(usable)
    signature = tuple(sorted((t.task, t.metric, t.n, t.shots, t.split, t.source_hash or "") for t in first.tasks))
    order = [fmt.short(t.task, 60) for t in first.tasks]
    weights = _weights(first)
    mean = _mean(where, scores, tasks, notes)
    if first.mean is not None and weights is None and len(first.tasks) > 1:
        notes.append(Note("mean", f"{where}: the recorded mean is neither the plain nor the size-weighted mean of its tasks."))
    return Suite(suite_id, first.protocol, first.version, first.definition, signature, tasks, mean, weights, order)


def _task(seeds: list[TaskScore]) -> Score:
    task = seeds[0]
    kind = fmt.kind_of(task.metric, task.higher_is_better)
    value, stderr, interval = _estimate([t.value for t in seeds], [t.stderr for t in seeds], task.n, kind)
    return Score(
        fmt.short(task.metric, 40), kind, value, stderr, interval, task.n, task.higher_is_better, task.chance, task.definition, len(seeds)
    )


def _estimate(values: list[float], stderrs: list[float | None], n: int, kind: fmt.Kind) -> tuple[float, float | None, Interval | None]:
    known = [s for s in stderrs if s is not None and math.isfinite(s)]
    if len(values) > 1:
        pooled = seed_mean(values, known, n)
        return pooled.value, pooled.stderr, pooled.interval()
    value, stderr = values[0], known[0] if known else None
    hits = value * n
    if kind == "percent" and 0 <= value <= 1 and abs(hits - round(hits)) < 1e-6 * max(n, 1):
        stderr = stderr if stderr is not None else math.sqrt(value * (1 - value) / n)
        if abs(stderr - math.sqrt(value * (1 - value) / max(n - 1, 1))) < 0.05 / math.sqrt(n):
            return value, stderr, wilson_interval(round(hits), n)
    if stderr is None:
        return value, None, None
    if kind == "perplexity" and value > 0:
        return value, stderr, log_normal_interval(value, stderr)
    return value, stderr, normal_interval(value, stderr)


def _weights(score: ProtocolScore) -> list[float] | None:
    """Weights under which the tasks give the recorded mean: plain, by size, or None when neither does."""
    tasks = score.tasks
    if not tasks or any(t.n == 0 or not math.isfinite(t.value) for t in tasks):
        return None
    equal = [1 / len(tasks)] * len(tasks)
    documents = sum(t.n for t in tasks)
    by_size = [t.n / documents for t in tasks]
    if score.mean is None:
        return equal if len(tasks) == 1 else None
    for weights in (equal, by_size):
        if abs(sum(w * t.value for w, t in zip(weights, tasks, strict=True)) - score.mean.value) < MEAN_TOLERANCE:
            return weights
    return None


def _mean(where: str, scores: list[ProtocolScore], tasks: dict[str, Score], notes: list[Note]) -> Score | None:
    first = scores[0]
    if first.mean is None:
        return next(iter(tasks.values())) if len(first.tasks) == 1 and tasks else None
    means = [s.mean for s in scores if s.mean is not None and math.isfinite(s.mean.value)]
    if len(means) < len(scores):
        notes.append(Note("NaN score", f"{where}: the mean is missing or NaN in {len(scores) - len(means)} record(s); left out."))
    if not means:
        return None
    documents = sum(t.n for t in first.tasks)
    if len(first.tasks) == 1 and tasks:
        only = next(iter(tasks.values()))
        if abs(only.value - sum(m.value for m in means) / len(means)) < MEAN_TOLERANCE:
            return only
    metrics = sorted({t.metric for t in first.tasks})
    higher = all(t.higher_is_better for t in first.tasks)
    kind = fmt.kind_of(metrics[0] if metrics else "", higher)
    stderrs = [m.stderr if m.stderr is not None else _mean_stderr(s) for m, s in zip(means, scores, strict=False)]
    value, stderr, interval = _mean_estimate([m.value for m in means], stderrs, documents)
    metric = fmt.short(" / ".join(metrics), 40)
    return Score(metric, kind, value, stderr, interval, documents, higher, first.chance, first.definition, len(means))


def _mean_stderr(score: ProtocolScore) -> float | None:
    weights = _weights(score)
    errors = [t.stderr for t in score.tasks]
    if weights is None or any(e is None for e in errors):
        return None
    return math.sqrt(sum((w * (e or 0.0)) ** 2 for w, e in zip(weights, errors, strict=True)))


def _mean_estimate(values: list[float], stderrs: list[float | None], n: int) -> tuple[float, float | None, Interval | None]:
    if len(values) > 1:
        pooled = seed_mean(values, stderrs, n)
        return pooled.value, pooled.stderr, pooled.interval()
    if stderrs[0] is None:
        return values[0], None, None
    return values[0], stderrs[0], normal_interval(values[0], stderrs[0])
