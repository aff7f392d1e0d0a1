"""Who is better than whom: paired tests inside each block, ranks that ties share, retention against dense."""

from __future__ import annotations

import math
import statistics as plain
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.leaderboard.collect import Entry, Note, Score, Suite
from prunebench.leaderboard.samples import TOLERANCE, Outcomes, SampleReader
from prunebench.leaderboard.statistics import (
    ALPHA,
    Comparison,
    benjamini_hochberg,
    holm,
    mcnemar_of,
    minimum_detectable_difference,
    paired_bootstrap,
    paired_t,
    retention,
    seed_mean_from_outcomes,
    shared_ranks,
    suite_seed_mean,
    unpaired_z,
)

Progress = Callable[[str, int, int], None]


@dataclass
class TaskTest:
    """Exact McNemar test of one task between two single-seed cells."""

    task: str
    a_only: int
    b_only: int
    p_value: float
    holm_p: float = 1.0


@dataclass
class Pair:
    """a against b on one suite; positive difference means that a scores higher."""

    suite: str
    a: Entry
    b: Entry
    result: Comparison
    higher_is_better: bool
    tasks: list[TaskTest] = field(default_factory=list)
    is_log: bool = False
    """The difference is one of logarithms: exp of it is a ratio (perplexities)."""
    holm_p: float = 1.0
    bh_p: float = 1.0

    @property
    def is_significant(self) -> bool:
        return self.holm_p < ALPHA

    @property
    def winner(self) -> Entry | None:
        if not self.is_significant:
            return None
        return self.a if (self.result.difference > 0) == self.higher_is_better else self.b


@dataclass
class Block:
    """The entries that compete: one model, sparsity, basis, recovery, and one suite on the same items."""

    suite: str
    model: str
    sparsity: float
    basis: str
    recovery: str
    entries: list[Entry]
    pairs: list[Pair]
    against_dense: list[Pair]
    dense: Entry | None
    detectable: float | None
    """Smallest true difference found with 80 % power at the corrected level (median over the pairs)."""


@dataclass
class Comparisons:
    """All blocks, and what they say about one (entry, suite)."""

    blocks: list[Block] = field(default_factory=list)
    ranks: dict[tuple[int, str], int] = field(default_factory=dict)
    shared: set[tuple[int, str]] = field(default_factory=set)
    retention: dict[tuple[int, str], tuple[float, float | None]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def compare(entries: list[Entry], out_dir: Path, progress: Progress | None = None) -> Comparisons:
    """Test every pair of every block; Holm-corrected within the block."""
    found = Comparisons()
    reader = SampleReader(Path(out_dir))
    groups: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    signatures: dict[tuple[Any, ...], set[Any]] = defaultdict(set)
    for entry in entries:
        for suite in entry.suites.values():
            if suite.mean is None:
                continue
            signatures[(entry.model, suite.id)].add(suite.signature)
            if not entry.is_dense:
                groups[(*entry.block(), suite.id, suite.signature)].append(entry)
    for (model, suite_id), kinds in signatures.items():
        if len(kinds) > 1:
            text = f"{model}, {suite_id}: scored on {len(kinds)} different sets of items or settings; only equal ones are compared."
            found.notes.append(Note("items", text))
    for done, (key, group) in enumerate(groups.items()):
        if progress:
            progress("compare methods", done, len(groups))
        _compare_block(found, reader, entries, key[-2], key[-1], group)
    if progress and groups:
        progress("compare methods", len(groups), len(groups))
    reader.pool.shutdown()
    found.notes += reader.notes
    return found


def compare_pairs(wanted: list[tuple[Entry, Entry]], suite_id: str, out_dir: Path) -> list[Pair]:
    """Tests chosen pairs, also of different blocks (say, other recoveries), on one suite; Holm-corrected together.

    Pairs without a score of that suite on the same items are left out.
    """

    def comparable(a: Entry, b: Entry) -> bool:
        left, right = a.suites.get(suite_id), b.suites.get(suite_id)
        return bool(left and right and left.mean and right.mean and left.signature == right.signature)

    reader = SampleReader(Path(out_dir))
    pairs = [pair for pair in wanted if comparable(*pair)]
    outcomes = {e.id: reader.read(e, e.suites[suite_id]) for pair in pairs for e in pair}
    reader.pool.shutdown()
    return _pairs(suite_id, pairs, outcomes)


def _compare_block(
    found: Comparisons, reader: SampleReader, entries: list[Entry], suite_id: str, signature: Any, group: list[Entry]
) -> None:
    first = group[0]
    dense = _dense_of(entries, first, suite_id, signature)
    outcomes = {e.id: reader.read(e, e.suites[suite_id]) for e in [*group, *([dense] if dense else [])]}
    for entry in group:
        _refine(entry.suites[suite_id], outcomes[entry.id])
    pairs = _pairs(suite_id, list(combinations(group, 2)), outcomes)
    against = _pairs(suite_id, [(e, dense) for e in group], outcomes) if dense else []
    errors = [p.result.stderr for p in pairs if p.result.stderr > 0]
    detectable = minimum_detectable_difference(plain.median(errors), tests=len(pairs)) if errors else None
    assert first.sparsity is not None
    block = Block(suite_id, first.model, first.sparsity, first.basis, first.recovery, group, pairs, against, dense, detectable)
    found.blocks.append(block)
    place = {e.id: i for i, e in enumerate(group)}
    beats = []
    for pair in pairs:
        winner = pair.winner
        if winner is not None:
            loser = pair.b if winner is pair.a else pair.a
            beats.append((place[winner.id], place[loser.id]))
    ranks = shared_ranks(len(group), beats)
    for entry, rank in zip(group, ranks, strict=True):
        found.ranks[(entry.id, suite_id)] = rank
        if ranks.count(rank) > 1:
            found.shared.add((entry.id, suite_id))
    if dense:
        for pair in against:
            found.retention[(pair.a.id, suite_id)] = _retention(pair, pair.a.suites[suite_id].mean, dense.suites[suite_id].mean)


def _dense_of(entries: list[Entry], like: Entry, suite_id: str, signature: Any) -> Entry | None:
    found = [
        e
        for e in entries
        if e.is_dense
        and e.model == like.model
        and e.synthetic == like.synthetic
        and suite_id in e.suites
        and e.suites[suite_id].mean is not None
        and e.suites[suite_id].signature == signature
    ]
    found.sort(key=lambda e: (e.recovery != like.recovery, e.recovery != "none"))
    return found[0] if found else None


def _refine(suite: Suite, outcomes: Outcomes | None) -> None:
    """With several seeds and outcomes per item, take the exact document and seed errors instead of the wide ones."""
    if outcomes is None:
        return
    if suite.mean is not None and suite.mean.kind == "perplexity":
        return
    for name, table in outcomes.tasks.items():
        score = suite.tasks.get(name)
        if score is not None and table.shape[0] > 1 and table.shape[1] > 1 and _matches(score, table):
            pooled = seed_mean_from_outcomes(table)
            score.stderr, score.interval = pooled.stderr, pooled.interval()
    mean = suite.mean
    if mean is None or suite.weights is None or mean.seeds < 2:
        return
    seeds = _by_seed(suite, outcomes)
    if abs(sum(seeds) / len(seeds) - mean.value) > TOLERANCE:
        return
    tables = [outcomes.tasks[t] for t in suite.task_order]
    pooled = suite_seed_mean(tables, suite.weights)
    mean.stderr, mean.interval = pooled.stderr, pooled.interval()


def _matches(score: Score, table: np.ndarray) -> bool:
    return abs(float(table.mean()) - score.value) < TOLERANCE


def _pairs(suite_id: str, wanted: list[tuple[Entry, Entry]], outcomes: dict[int, Outcomes | None]) -> list[Pair]:
    pairs = []
    for a, b in wanted:
        pair = _test(suite_id, a, b, outcomes[a.id], outcomes[b.id])
        if pair is not None:
            pairs.append(pair)
    p_values = [p.result.p_value for p in pairs]
    for pair, corrected, rate in zip(pairs, holm(p_values), benjamini_hochberg(p_values), strict=True):
        pair.holm_p, pair.bh_p = corrected, rate
    tests = [t for p in pairs for t in p.tasks]
    for test, corrected in zip(tests, holm([t.p_value for t in tests]), strict=True):
        test.holm_p = corrected
    return pairs


def _test(suite_id: str, a: Entry, b: Entry, a_items: Outcomes | None, b_items: Outcomes | None) -> Pair | None:
    left, right = a.suites[suite_id], b.suites[suite_id]
    one, other = left.mean, right.mean
    assert one is not None
    assert other is not None
    higher = one.higher_is_better
    is_log = one.kind == "perplexity" and min(one.value, other.value) > 0
    if (
        left.weights
        and a_items
        and b_items
        and a_items.items == b_items.items
        and _means_hold(left, a_items)
        and _means_hold(right, b_items)
    ):
        order = left.task_order
        differences = [a_items.tasks[t].mean(axis=0) - b_items.tasks[t].mean(axis=0) for t in order]
        a_means, b_means = _by_seed(left, a_items), _by_seed(right, b_items)
        if len(a_means) == 1 and len(b_means) == 1:
            seed = zlib.crc32(f"{suite_id}|{a.title}|{b.title}".encode("utf-8", "replace"))
            result = paired_bootstrap(differences, left.weights, seed=seed)
            return Pair(suite_id, a, b, result, higher, _task_tests(order, a_items, b_items), is_log)
        return Pair(suite_id, a, b, paired_t(differences, left.weights, a_means, b_means), higher, is_log=is_log)
    if one.stderr is None or other.stderr is None:
        return None
    if is_log:
        result = unpaired_z(math.log(one.value), one.stderr / one.value, math.log(other.value), other.stderr / other.value, n=one.n)
    else:
        result = unpaired_z(one.value, one.stderr, other.value, other.stderr, n=one.n)
    return Pair(suite_id, a, b, result, higher, is_log=is_log)


def _means_hold(suite: Suite, outcomes: Outcomes) -> bool:
    """The outcomes give the recorded mean: only then do they stand for it."""
    assert suite.mean is not None
    seeds = _by_seed(suite, outcomes)
    if suite.mean.kind == "perplexity":
        return suite.mean.seeds > 1 or abs(seeds[0] - math.log(suite.mean.value)) < TOLERANCE
    return abs(sum(seeds) / len(seeds) - suite.mean.value) < TOLERANCE


def _by_seed(suite: Suite, outcomes: Outcomes) -> list[float]:
    assert suite.weights is not None
    total = sum(w * outcomes.tasks[t].mean(axis=1) for w, t in zip(suite.weights, suite.task_order, strict=True))
    return [float(v) for v in np.atleast_1d(total)]


def _task_tests(order: list[str], a: Outcomes, b: Outcomes) -> list[TaskTest]:
    tests = []
    for task in order:
        left, right = a.raw[task][0], b.raw[task][0]
        if np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all():
            tests.append(TaskTest(task, *mcnemar_of(left, right)))
    return tests


def _retention(pair: Pair, own: Score | None, dense: Score | None) -> tuple[float, float | None]:
    """Share of the dense score that is kept, with its standard error where both scores have one."""
    assert own is not None
    assert dense is not None
    if dense.value == 0:
        return math.nan, None
    if own.stderr is None or dense.stderr is None:
        return own.value / dense.value, None
    covariance = 0.0
    if "unpaired" not in pair.result.method and not pair.is_log:
        covariance = (own.stderr**2 + dense.stderr**2 - pair.result.stderr**2) / 2
    return retention(own.value, dense.value, own.stderr, dense.stderr, covariance)
