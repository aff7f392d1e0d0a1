"""Who is better than whom: paired tests inside each race, the places that they leave open, what is kept of the dense model."""

from __future__ import annotations

import statistics as plain
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.leaderboard.collect import Entry, Note
from prunebench.leaderboard.dense import Able, Kept, is_collapsed, kept_above_chance, kept_of_mean, tasks_above_chance
from prunebench.leaderboard.families import Family, FamilyKind, main_settings
from prunebench.leaderboard.samples import TOLERANCE, Outcomes, SampleReader
from prunebench.leaderboard.scores import Score, Suite
from prunebench.leaderboard.seeds import Spreads, Weights, of_suite, of_task
from prunebench.leaderboard.statistics import (
    ALPHA,
    Comparison,
    Part,
    Rank,
    SeedSpread,
    benjamini_hochberg,
    exponential,
    holm,
    items_parts,
    mcnemar_of,
    minimum_detectable_difference,
    paired_t,
    rank_ranges,
    seeds_of_difference,
    unpaired_t,
)

Progress = Callable[[str, int, int], None]
ONE_SEED = "one seed: the score is this checkpoint's, not the method's"


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
    """a against b on one suite; positive difference means that a's value is higher.

    Attributes:
        is_log: the difference is one of logarithms: exp of it is a ratio (perplexities).
        one_seed: those of the two whose result hangs on its seed, with one seed run and no spread of seeds measured elsewhere: the
            test is then about these checkpoints.
        able: the same difference over the tasks that the dense model can do; None where those are all tasks, or not known.
        collapsed: those of the two that lost everything.
    """

    suite: str
    a: Entry
    b: Entry
    result: Comparison
    higher_is_better: bool
    tasks: list[TaskTest] = field(default_factory=list)
    is_log: bool = False
    one_seed: tuple[Entry, ...] = ()
    able: Comparison | None = None
    collapsed: tuple[Entry, ...] = ()
    family: Family = field(default_factory=lambda: Family("chosen", 1))
    holm_p: float = 1.0
    bh_p: float = 1.0

    @property
    def is_significant(self) -> bool:
        return self.holm_p < ALPHA

    @property
    def ahead(self) -> Entry | None:
        """The one whose checkpoint is significantly better on these items."""
        if not self.is_significant:
            return None
        return self.a if (self.result.difference > 0) == self.higher_is_better else self.b

    @property
    def holds_where_dense_can(self) -> bool:
        """The difference is there too, in the same direction, without the tasks that the dense model can't do."""
        return self.able is None or (self.able.p_value < ALPHA and (self.able.difference > 0) == (self.result.difference > 0))

    @property
    def winner(self) -> Entry | None:
        """The one whose method is better, as far as one corrected test may say so."""
        ahead = self.ahead
        if ahead is None or self.one_seed or ahead in self.collapsed or not self.holds_where_dense_can:
            return None
        return ahead

    @property
    def detectable(self) -> float | None:
        """The smallest true difference found with 80 % power at the level that the family leaves to one test."""
        if self.result.stderr <= 0:
            return None
        return minimum_detectable_difference(self.result.stderr, self.result.degrees_of_freedom, tests=self.family.size)


@dataclass
class Block:
    """One race on one suite: entries of one model, sparsity, basis and track, scored on the same items.

    Attributes:
        entries: the main setting of each contender.
        ablations: the other settings.
        able: on which tasks the dense model is above chance; None where no task has a chance level or there is no dense model.
        detectable: median over the pairs of methods.
    """

    suite: str
    name: str
    model: str
    sparsity: float
    basis: str
    track: str
    synthetic: bool
    entries: list[Entry]
    ablations: list[Entry]
    pairs: list[Pair]
    ablation_pairs: list[Pair]
    against_dense: list[Pair]
    dense: Entry | None
    able: Able | None
    detectable: float | None

    @property
    def every_pair(self) -> list[Pair]:
        return [*self.pairs, *self.ablation_pairs, *self.against_dense]


Where = tuple[int, str]
"""An entry's id and a suite's."""


@dataclass
class Comparisons:
    """All blocks, and what they say about one (entry, suite).

    Attributes:
        ranks: of the methods' main settings; who has none stands in `unranked` with the reason.
        kept: retention above chance.
        of_dense: the plain share of the dense score; of a perplexity how many times larger it became.
    """

    blocks: list[Block] = field(default_factory=list)
    ranks: dict[Where, Rank] = field(default_factory=dict)
    unranked: dict[Where, str] = field(default_factory=dict)
    kept: dict[Where, Kept] = field(default_factory=dict)
    of_dense: dict[Where, Kept] = field(default_factory=dict)
    collapsed: set[Where] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)


def compare(entries: list[Entry], out_dir: Path, progress: Progress | None = None) -> Comparisons:
    """Test every race; Holm-corrected within its families."""
    found = Comparisons()
    reader = SampleReader(Path(out_dir))
    groups: dict[tuple[str, bool, str], list[Entry]] = defaultdict(list)
    signatures: dict[tuple[str, str], set[str]] = defaultdict(set)
    for entry in entries:
        for suite in entry.suites.values():
            if suite.mean is None:
                continue
            groups[(entry.model, entry.synthetic, suite.id)].append(entry)
            signatures[(entry.model, f"{suite.protocol} ({', '.join(suite.task_order)})")].add(suite.id)
    for (model, what), ids in signatures.items():
        if len(ids) > 1:
            text = f"{model}, {what}: scored on {len(ids)} different sets of items or settings; only equal ones are compared."
            found.notes.append(Note("items", text))
    for done, ((_, _, suite_id), group) in enumerate(groups.items()):
        if progress:
            progress("compare methods", done, len(groups))
        _Suite(found, suite_id, group, reader).compare()
    if progress and groups:
        progress("compare methods", len(groups), len(groups))
    reader.pool.shutdown()
    found.notes += reader.notes
    return found


def compare_pairs(wanted: list[tuple[Entry, Entry]], suite_id: str, out_dir: Path) -> list[Pair]:
    """Tests chosen pairs, also of different races (say, other recoveries), on one suite; Holm-corrected together.

    Pairs without a score of that suite on the same items are left out.
    """

    def comparable(a: Entry, b: Entry) -> bool:
        left, right = a.suites.get(suite_id), b.suites.get(suite_id)
        return bool(left and right and left.mean and right.mean and left.signature == right.signature)

    pairs = [pair for pair in wanted if comparable(*pair)]
    reader = SampleReader(Path(out_dir))
    tests = _Suite(Comparisons(), suite_id, list({e.id: e for pair in pairs for e in pair}.values()), reader)
    reader.pool.shutdown()
    return tests.family("chosen", pairs)


class _Suite:
    """One suite of one model: its outcomes, the spread of its seeds, and the tests."""

    def __init__(self, found: Comparisons, suite_id: str, entries: list[Entry], reader: SampleReader) -> None:
        self.found, self.id, self.entries = found, suite_id, entries
        self.outcomes = {e.id: reader.read(e, e.suites[suite_id]) for e in entries}
        self.spreads = Spreads(suite_id, self.outcomes, entries)
        for entry in entries:
            self._refine(entry)
        dense = sorted((e for e in entries if e.is_dense), key=lambda e: (bool(e.problem), e.recovery != "none", e.id))
        self.dense = dense[0] if dense and not dense[0].problem else None
        self.able = tasks_above_chance(self.suite(self.dense)) if self.dense else None
        self.able_weights: Weights | None = None
        if self.dense and self.able and self.able.tasks and self.able.at_chance:
            self.able_weights = self.able.weights(self.suite(self.dense))

    def suite(self, entry: Entry) -> Suite:
        return entry.suites[self.id]

    def mean(self, entry: Entry) -> Score:
        mean = self.suite(entry).mean
        assert mean is not None
        return mean

    # --- scores ------------------------------------------------------------------------------------------------------

    def _refine(self, entry: Entry) -> None:
        """Puts the spread of seeds, and with several seeds the items' error from their outcomes, into every interval."""
        suite, outcomes = self.suite(entry), self.outcomes[entry.id]
        scores = [(score, of_task(name)) for name, score in suite.tasks.items()]
        weights = of_suite(suite)
        if suite.mean is not None and weights is not None and all(suite.mean is not score for score, _ in scores):
            scores.append((suite.mean, weights))
        for score, quantity in scores:
            spread = self.spreads.of(entry, quantity)
            tables = self._tables(suite, outcomes, quantity)
            if tables is not None and score.seeds > 1:
                parts = items_parts([table.mean(axis=0) for table in tables], [weight for _, weight in quantity])
                if sum(part.variance for part in parts) > 0:
                    score.item_parts = parts
            score.spread = spread or score.spread
            score.settle()

    def _tables(self, suite: Suite, outcomes: Outcomes | None, quantity: Weights) -> list[np.ndarray] | None:
        """The (seeds, items) outcomes of each task, if they stand for the recorded scores."""
        if outcomes is None or any(name not in outcomes.tasks for name, _ in quantity):
            return None
        tables = [outcomes.tasks[name] for name, _ in quantity]
        return tables if all(table.shape[1] > 1 for table in tables) else None

    # --- tests -------------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Every race of this suite, and what each row keeps of the dense model."""
        races: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
        for entry in self.entries:
            if is_collapsed(self.suite(entry), self.suite(self.dense) if self.dense else None) and not entry.is_dense:
                self.found.collapsed.add((entry.id, self.id))
            if entry.race is not None:
                races[entry.race].append(entry)
            if self.dense is not None and not entry.is_dense:
                self._keeps(entry)
        for race in races.values():
            self._race(race)

    def _race(self, race: list[Entry]) -> None:
        contenders = main_settings(race)
        mains = [group[0] for group in contenders]
        mains.sort(key=lambda e: e.id)
        pairs = self.family("methods", list(combinations(mains, 2)))
        ablations = [p for group in contenders for p in self.family("ablations", [(other, group[0]) for other in group[1:]])]
        against: list[Pair] = []
        if self.dense is not None:
            against = self.family("dense", [(e, self.dense) for e in mains])
        least = [d for d in (p.detectable for p in pairs) if d is not None]
        first = race[0]
        assert first.sparsity is not None
        block = Block(
            self.id,
            self.suite(first).name,
            first.model,
            first.sparsity,
            first.basis,
            first.track,
            first.synthetic or self.suite(first).synthetic,
            mains,
            [e for group in contenders for e in group[1:]],
            pairs,
            ablations,
            against,
            self.dense,
            self.able,
            plain.median(least) if least else None,
        )
        self.found.blocks.append(block)
        self._rank(block)

    def _rank(self, block: Block) -> None:
        for entry in block.ablations:
            self.found.unranked[(entry.id, self.id)] = "an ablation: the method is ranked by its main setting"
        ranked = []
        for entry in block.entries:
            why = self._no_rank(entry, block)
            if why:
                self.found.unranked[(entry.id, self.id)] = why
            else:
                ranked.append(entry)
        if len(ranked) < 2:
            for entry in ranked:
                self.found.unranked[(entry.id, self.id)] = "no other ranked method on the same items"
            return
        place = {e.id: i for i, e in enumerate(ranked)}
        beats = []
        for pair in block.pairs:
            winner = pair.winner
            if winner is not None and pair.a.id in place and pair.b.id in place:
                beats.append((place[winner.id], place[(pair.b if winner is pair.a else pair.a).id]))
        for entry, rank in zip(ranked, rank_ranges(len(ranked), beats), strict=True):
            self.found.ranks[(entry.id, self.id)] = rank

    def _no_rank(self, entry: Entry, block: Block) -> str:
        """Why a method can't be ranked; empty when it can."""
        suite, score = self.suite(entry), self.mean(entry)
        if not any(entry in (p.a, p.b) for p in block.pairs):
            return "nothing on the same items to compare with" if score.parts else "no standard error was recorded"
        if any(task.chance is not None for task in suite.tasks.values()) or score.chance is not None:
            if self.dense is None:
                return "no dense model was scored on the same items"
            if self.able is not None and not self.able.tasks:
                return "the dense model is at chance on every task"
        if (entry.id, self.id) in self.found.collapsed:
            return "collapsed: nothing is left that could be ranked"
        return ONE_SEED if self._is_one_seed(entry) else ""

    def _is_one_seed(self, entry: Entry) -> bool:
        return not entry.is_dense and entry.depends_on_seed and self.mean(entry).spread is None

    def family(self, kind: FamilyKind, wanted: list[tuple[Entry, Entry]]) -> list[Pair]:
        """The tests of some pairs, corrected together."""
        pairs = [pair for pair in (self._test(a, b) for a, b in wanted) if pair is not None]
        family = Family(kind, len(pairs))
        p_values = [p.result.p_value for p in pairs]
        for pair, corrected, rate in zip(pairs, holm(p_values), benjamini_hochberg(p_values), strict=True):
            pair.family, pair.holm_p, pair.bh_p = family, corrected, rate
        tests = [t for p in pairs for t in p.tasks]
        for test, corrected in zip(tests, holm([t.p_value for t in tests]), strict=True):
            test.holm_p = corrected
        return pairs

    def _test(self, a: Entry, b: Entry) -> Pair | None:
        one = self.mean(a)
        result = self._paired(a, b, of_suite(self.suite(a))) or self._unpaired(a, b)
        if result is None:
            return None
        return Pair(
            self.id,
            a,
            b,
            result,
            one.higher_is_better,
            self._task_tests(a, b),
            one.is_log,
            tuple(e for e in (a, b) if self._is_one_seed(e)),
            self._able_test(a, b),
            tuple(e for e in (a, b) if (e.id, self.id) in self.found.collapsed),
        )

    def _paired(self, a: Entry, b: Entry, quantity: Weights | None) -> Comparison | None:
        """The paired test of one quantity; None without outcomes of the same items that stand for both scores."""
        left, right = self.outcomes[a.id], self.outcomes[b.id]
        if quantity is None or left is None or right is None or of_suite(self.suite(b)) is None:
            return None
        tables = [self._tables(self.suite(e), self.outcomes[e.id], quantity) for e in (a, b)]
        if tables[0] is None or tables[1] is None or any(left.items[name] != right.items[name] for name, _ in quantity):
            return None
        names, weights = [name for name, _ in quantity], [weight for _, weight in quantity]
        if not all(_means_hold(self.suite(e), self.outcomes[e.id]) for e in (a, b)):
            return None
        seeds, noise = self._seed_parts((a, b), quantity)
        return paired_t(
            [x.mean(axis=0) - y.mean(axis=0) for x, y in zip(*tables, strict=True)],
            weights,
            is_right_or_wrong=all(_is_right_or_wrong(o, names) for o in (left, right)),
            residual=noise,
            seeds=seeds,
        )

    def _seed_parts(self, entries: tuple[Entry, Entry], quantity: Weights) -> tuple[list[Part], float]:
        return seeds_of_difference([(self.spreads.of(e, quantity), len(self.suite(e).scored)) for e in entries])

    def _unpaired(self, a: Entry, b: Entry) -> Comparison | None:
        one, other = self.mean(a), self.mean(b)
        if not one.parts or not other.parts or one.is_log != other.is_log:
            return None
        seeds, _ = seeds_of_difference([(one.spread, one.seeds), (other.spread, other.seeds)])
        return unpaired_t(one.level, one.parts_of_items, other.level, [*other.parts_of_items, *seeds], n=one.n)

    def _able_test(self, a: Entry, b: Entry) -> Comparison | None:
        if self.able_weights is None:
            return None
        tasks = [name for name, _ in self.able_weights]
        if any(name not in self.suite(e).tasks for e in (a, b) for name in tasks):
            return None
        result = self._paired(a, b, self.able_weights)
        if result is not None:
            return result
        sides: list[tuple[float, list[Part]]] = []
        for entry in (a, b):
            scores = [(weight, self.suite(entry).tasks[name]) for name, weight in self.able_weights]
            if not all(score.parts for _, score in scores):
                return None
            parts = [Part(w**2 * part.variance, part.degrees_of_freedom) for w, score in scores for part in score.parts]
            sides.append((sum(w * score.level for w, score in scores), parts))
        return unpaired_t(*sides[0], *sides[1], n=sum(self.suite(a).tasks[name].n for name in tasks))

    def _task_tests(self, a: Entry, b: Entry) -> list[TaskTest]:
        left, right = self.outcomes[a.id], self.outcomes[b.id]
        if left is None or right is None or left.items != right.items:
            return []
        tests = []
        for task in self.suite(a).task_order:
            one, other = left.raw[task], right.raw[task]
            if len(one) == 1 == len(other) and np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
                tests.append(TaskTest(task, *mcnemar_of(one[0], other[0])))
        return tests

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _keeps(self, entry: Entry) -> None:
        assert self.dense is not None
        suite, dense = self.suite(entry), self.suite(self.dense)
        own, theirs = self.outcomes[entry.id], self.outcomes[self.dense.id]
        where = (entry.id, self.id)
        if self.mean(entry).is_log:
            pair = self._test(entry, self.dense)
            ratio = self.mean(entry).value / self.mean(self.dense).value
            interval = None if pair is None else exponential(pair.result.interval)
            is_paired = pair is not None and "unpaired" not in pair.result.method
            self.found.of_dense[where] = Kept(ratio, interval, is_paired=is_paired)
            return
        if self.mean(entry).kind != "percent":
            return
        weights = of_suite(suite)
        share = kept_of_mean(suite, dense, weights, own, theirs, self._spread(entry, weights))
        if share is not None:
            self.found.of_dense[where] = share
        if self.able is not None:
            quantity = self.able.weights(dense) if self.able.tasks else None
            above = kept_above_chance(suite, dense, self.able, own, theirs, self._spread(entry, quantity))
            if above is not None:
                self.found.kept[where] = above

    def _spread(self, entry: Entry, quantity: Weights | None) -> SeedSpread | None:
        return None if quantity is None else self.spreads.of(entry, quantity)


def _means_hold(suite: Suite, outcomes: Outcomes | None) -> bool:
    """The outcomes give the recorded mean of every seed: only then do they stand for it."""
    weights = of_suite(suite)
    if suite.mean is None or weights is None or outcomes is None:
        return False
    by_seed = sum(weight * outcomes.tasks[name].mean(axis=1) for name, weight in weights)
    levels = np.asarray(suite.mean.seed_levels)
    return len(levels) == len(np.atleast_1d(by_seed)) and bool(np.all(np.abs(by_seed - levels) < TOLERANCE))


def _is_right_or_wrong(outcomes: Outcomes, tasks: list[str]) -> bool:
    """Outcomes of one seed that are 0 or 1 and stand for themselves."""
    return all(
        len(outcomes.raw[task]) == 1
        and np.isin(outcomes.raw[task], (0, 1)).all()
        and np.array_equal(outcomes.raw[task], outcomes.tasks[task])
        for task in tasks
    )
