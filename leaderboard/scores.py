"""Scores of one setting: tasks and suite means over its seeds, each with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.record import ProtocolScore, Record, TaskScore
from prunebench.leaderboard.statistics import (
    Interval,
    Part,
    SeedSpread,
    combine,
    exponential,
    over_seeds,
    seed_spread,
    wilson_interval,
)

MEAN_TOLERANCE = 1e-6
Tell = Callable[[str, str], None]
"""Takes the kind and the text of a note."""


@dataclass
class Score:
    """One number with its interval: a task or a suite mean, over the seeds of an entry.

    Attributes:
        value: over several seeds their mean, of perplexities the geometric one.
        stderr: on the scale of `value`.
        by_seed: the recorded value of each seed.
        item_parts: the error that the items give, on the scale of the tests (see `level`); empty where none was recorded.
        spread: how far seeds lie apart; None where that is not known, and the interval is about this checkpoint only.
    """

    metric: str
    kind: fmt.Kind
    value: float
    n: int
    higher_is_better: bool
    chance: float | None
    definition: str
    by_seed: tuple[float, ...]
    item_parts: list[Part] = field(default_factory=list, repr=False)
    spread: SeedSpread | None = None
    stderr: float | None = None
    interval: Interval | None = None
    is_one_task: bool = True

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    @property
    def is_log(self) -> bool:
        """Tests and means are of logarithms: perplexities."""
        return self.kind == "perplexity" and min(self.by_seed) > 0

    @property
    def level(self) -> float:
        """The value on the scale of the tests."""
        return math.log(self.value) if self.is_log else self.value

    @property
    def seed_levels(self) -> list[float]:
        return [math.log(v) for v in self.by_seed] if self.is_log else list(self.by_seed)

    @property
    def parts(self) -> list[Part]:
        """Every known part of the error, on the scale of the tests."""
        return over_seeds(self.item_parts, self.seeds, self.spread) if self.item_parts else []

    @property
    def parts_of_items(self) -> list[Part]:
        """Those of them that the items give, without the noise that the spread of seeds holds already."""
        return over_seeds(self.item_parts, self.seeds, self.spread)[: len(self.item_parts)]

    @property
    def margin(self) -> float | None:
        """Value minus what guessing gives."""
        return None if self.chance is None else self.value - self.chance

    @property
    def is_at_chance(self) -> bool:
        """The interval reaches the chance level: not told apart from guessing."""
        return self.chance is not None and self.interval is not None and self.interval.low <= self.chance

    def settle(self) -> Score:
        """Works out the standard error and the interval from the parts of the error."""
        parts = self.parts
        if not parts or (self.seeds > 1 and self.spread is None):
            self.stderr = self.interval = None
            return self
        found = combine(self.level, parts)
        self.stderr = found.stderr * (self.value if self.is_log else 1.0)
        source = "items and seeds" if self.spread is not None else "items"
        if self.is_log:
            self.interval = exponential(found.interval(f"t on the log scale, {source}"))
        else:
            self.interval = self._wilson(found.stderr) or found.interval(f"t, {source}")
        return self

    def _wilson(self, stderr: float) -> Interval | None:
        """For one seed's share of right items, where its recorded standard error is that of a plain share."""
        hits = self.value * self.n
        if self.kind != "percent" or self.spread is not None or not self.is_one_task or not 0 <= self.value <= 1:
            return None
        if abs(hits - round(hits)) > 1e-6 * max(self.n, 1):
            return None
        plain = math.sqrt(self.value * (1 - self.value) / max(self.n - 1, 1))
        is_plain = plain == 0 or abs(stderr - plain) < 0.05 / math.sqrt(self.n)
        return wilson_interval(round(hits), self.n) if is_plain else None


@dataclass
class Suite:
    """One protocol's scores of one entry, all on the same items.

    Attributes:
        id: what tells it from every other suite of the page; never shown.
        name, synthetic: what is shown.
        scored: the record and the score of each seed.
    """

    id: str
    name: str
    synthetic: bool
    protocol: str
    version: str
    definition: str
    signature: tuple[Any, ...]
    scored: list[tuple[Record, ProtocolScore]] = field(repr=False)
    tasks: dict[str, Score]
    mean: Score | None
    weights: list[float] | None
    task_order: list[str]

    @property
    def is_limited(self) -> bool:
        """Not all items of the split were scored."""
        return any(score.extra.get("limit") is not None for _, score in self.scored)


def signature_of(score: ProtocolScore) -> tuple[Any, ...]:
    """What must be equal for two scores to be of the same items, asked in the same way."""
    return tuple(sorted((t.task, t.metric, t.n, t.shots, t.split, t.source_hash or "") for t in score.tasks))


@dataclass(frozen=True)
class SuiteName:
    """How a suite is called, and whether its tasks were made up."""

    name: str
    synthetic: bool

    @property
    def id(self) -> str:
        return self.name + (" (synthetic)" if self.synthetic else "")


def build_suite(where: str, named: SuiteName, scored: list[tuple[Record, ProtocolScore]], tell: Tell) -> Suite:
    """The suite of one entry from the scores of its seeds; `tell` hears what had to be left out."""
    scores = [score for _, score in scored]
    first = scores[0]
    columns: dict[str, list[TaskScore]] = defaultdict(list)
    for score in scores:
        for task in score.tasks:
            columns[task.task].append(task)
    tasks: dict[str, Score] = {}
    for name, seeds in columns.items():
        usable = []
        for task in seeds:
            if task.n == 0:
                tell("empty task", f"{where}: task {fmt.short(name, 40)} has no documents; it gives no score.")
            elif not math.isfinite(task.value):
                tell("NaN score", f"{where}: {fmt.short(name, 40)} ({task.metric}) is {task.value}; left out.")
            else:
                usable.append(task)
        if usable:
            tasks[fmt.short(name, 60)] = _task(usable)
    order = [fmt.short(t.task, 60) for t in first.tasks]
    weights = _weights(first)
    mean = _mean(where, scores, tasks, tell)
    if first.mean is not None and weights is None and len(first.tasks) > 1:
        tell("mean", f"{where}: the recorded mean is neither the plain nor the size-weighted mean of its tasks.")
    return Suite(
        named.id,
        named.name,
        named.synthetic,
        first.protocol,
        first.version,
        first.definition,
        signature_of(first),
        scored,
        tasks,
        mean,
        weights,
        order,
    )


def mean_over_seeds(values: Sequence[float], kind: fmt.Kind) -> float:
    """Mean of a score over seeds; of perplexities the geometric one, which is the exponential of their mean loss."""
    if kind == "perplexity" and min(values) > 0:
        return math.exp(math.fsum(map(math.log, values)) / len(values))
    return math.fsum(values) / len(values)


def _task(seeds: list[TaskScore]) -> Score:
    task = seeds[0]
    kind = fmt.kind_of(task.metric, task.higher_is_better)
    values = tuple(t.value for t in seeds)
    parts = _mean_parts([_task_part(t, kind) for t in seeds])
    score = Score(
        fmt.short(task.metric, 40),
        kind,
        mean_over_seeds(values, kind),
        task.n,
        task.higher_is_better,
        task.chance,
        task.definition,
        values,
        parts,
    )
    score.spread = seed_spread([score.seed_levels], [None])
    return score.settle()


def _task_part(task: TaskScore, kind: fmt.Kind) -> list[Part] | None:
    """The items' error of one task, on the scale of the tests.

    Where all items or none are right, their spread is 0, but not the error: it is that of two more right and two more wrong ones
    (Agresti and Coull, The American Statistician 52, 1998).
    """
    if task.n < 2:
        return None
    hits = task.value * task.n
    is_share = kind == "percent" and 0 <= task.value <= 1 and abs(hits - round(hits)) < 1e-6 * task.n
    stderr = task.stderr
    if is_share and stderr is None:
        stderr = math.sqrt(task.value * (1 - task.value) / (task.n - 1))
    if is_share and stderr == 0:
        share, n = (hits + 2) / (task.n + 4), task.n + 4
        stderr = math.sqrt(share * (1 - share) / n)
    if stderr is None or not math.isfinite(stderr):
        return None
    scale = task.value if kind == "perplexity" and task.value > 0 else 1.0
    return [Part((stderr / scale) ** 2, task.n - 1)]


def _mean_parts(seeds: list[list[Part] | None]) -> list[Part]:
    """The items' parts of the mean over seeds: those of one seed, averaged, since the items are shared."""
    known = [parts for parts in seeds if parts]
    if not known or any(len(parts) != len(known[0]) for parts in known):
        return []
    return [Part(sum(p.variance for p in same) / len(same), same[0].degrees_of_freedom) for same in zip(*known, strict=True)]


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


def _mean(where: str, scores: list[ProtocolScore], tasks: dict[str, Score], tell: Tell) -> Score | None:
    first = scores[0]
    if first.mean is None:
        return next(iter(tasks.values())) if len(first.tasks) == 1 and tasks else None
    kept = [(s, s.mean) for s in scores if s.mean is not None and math.isfinite(s.mean.value)]
    if len(kept) < len(scores):
        tell("NaN score", f"{where}: the mean is missing or NaN in {len(scores) - len(kept)} record(s); left out.")
    if not kept:
        return None
    values = tuple(mean.value for _, mean in kept)
    if len(first.tasks) == 1 and tasks:
        only = next(iter(tasks.values()))
        if all(abs(a - b) < MEAN_TOLERANCE for a, b in zip(only.by_seed, values, strict=False)):
            return only
    metrics = sorted({t.metric for t in first.tasks})
    higher = all(t.higher_is_better for t in first.tasks)
    kind = fmt.kind_of(metrics[0] if metrics else "", higher)
    documents = sum(t.n for t in first.tasks)
    score = Score(
        fmt.short(" / ".join(metrics), 40),
        kind,
        mean_over_seeds(values, kind),
        documents,
        higher,
        first.chance,
        first.definition,
        values,
        _mean_parts([_suite_parts(s, mean.value, mean.stderr, kind) for s, mean in kept]),
        is_one_task=False,
    )
    score.spread = seed_spread([score.seed_levels], [None])
    return score.settle()


def _suite_parts(score: ProtocolScore, value: float, stderr: float | None, kind: fmt.Kind) -> list[Part] | None:
    """One part a task where the tasks give the mean; else the recorded standard error as one part."""
    scale = value if kind == "perplexity" and value > 0 else 1.0
    weights, tasks = _weights(score), [_task_part(t, "number" if kind == "perplexity" else kind) for t in score.tasks]
    if weights is not None and all(tasks):
        return [
            Part((w / scale) ** 2 * part.variance, part.degrees_of_freedom)
            for w, parts in zip(weights, tasks, strict=True)
            for part in parts or []
        ]
    if stderr is None or not math.isfinite(stderr):
        return None
    degrees = sum(t.n for t in score.tasks) - len(score.tasks)
    return [Part((stderr / scale) ** 2, degrees)] if degrees > 0 else None
