"""Intervals, paired tests, corrections and ranks. Pure functions on numbers and arrays; no records here.

Conventions: a fraction is in [0, 1]; `alpha` is two-sided; outcomes of two models are compared on the same items. Every
p-value is analytic: it has no floor that a correction for many comparisons could lift over the level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8
PSEUDO_PAIRS = 2.0
"""Discordant pseudo-pairs, half in each direction, added to the outcomes of two models; see `paired_part`."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval and how it was made."""

    low: float
    high: float
    method: str

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def covers(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Part:
    """One source of error: its variance and the degrees of freedom with which that variance is known."""

    variance: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class Estimated:
    """A number with the standard error of all its parts, and the degrees of freedom of that error."""

    value: float
    stderr: float
    degrees_of_freedom: float

    def interval(self, method: str, alpha: float = ALPHA) -> Interval:
        half = t_quantile(1 - alpha / 2, self.degrees_of_freedom) * self.stderr
        return Interval(self.value - half, self.value + half, method)


@dataclass(frozen=True)
class Comparison:
    """Difference a - b with its test."""

    difference: float
    stderr: float
    interval: Interval
    p_value: float
    method: str
    n: int
    degrees_of_freedom: float = math.inf
    of_seeds: float = 0.0
    """Variance that the seeds give the difference; the rest of stderr^2 comes from the items."""


def t_quantile(share: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t; with infinite degrees of freedom the normal one."""
    return float(special.ndtri(share) if math.isinf(degrees_of_freedom) else special.stdtrit(degrees_of_freedom, share))


def t_tail(score: float, degrees_of_freedom: float) -> float:
    """Share of Student's t above `score`; with infinite degrees of freedom of the normal distribution."""
    return float(special.ndtr(-score) if math.isinf(degrees_of_freedom) else special.stdtr(degrees_of_freedom, -score))


def combine(value: float, parts: Iterable[Part]) -> Estimated:
    """A number whose error has several independent parts; degrees of freedom after Satterthwaite.

    Source: F. E. Satterthwaite, An approximate distribution of estimates of variance components, Biometrics Bulletin 2 (1946).
    """
    known = [part for part in parts if part.variance > 0]
    variance = sum(part.variance for part in known)
    if not known:
        return Estimated(float(value), 0.0, math.inf)
    spread = sum(part.variance**2 / part.degrees_of_freedom for part in known)
    return Estimated(float(value), math.sqrt(variance), variance**2 / spread if spread > 0 else math.inf)


# --- intervals of one score ------------------------------------------------------------------------------------------


def wilson_interval(successes: int, n: int, alpha: float = ALPHA) -> Interval:
    """Wilson's score interval of a fraction; it holds its level where the normal one does not (small n, near 0 or 1).

    Source: E. B. Wilson, JASA 22 (1927); recommended by Brown, Cai and DasGupta, Statistical Science 16 (2001).
    """
    found = stats.binomtest(successes, n).proportion_ci(confidence_level=1 - alpha, method="wilson")
    return Interval(float(found.low), float(found.high), "Wilson, items")


def t_interval(value: float, stderr: float, degrees_of_freedom: float, alpha: float = ALPHA) -> Interval:
    """value ± t quantile x standard error."""
    return Estimated(value, stderr, degrees_of_freedom).interval("t, items", alpha)


def log_t_interval(value: float, stderr: float, degrees_of_freedom: float, alpha: float = ALPHA) -> Interval:
    """Interval of a positive quantity such as a perplexity: t on the log scale, where the standard error is stderr / value.

    The logarithm of a perplexity is a mean over blocks, so its t interval with blocks - 1 degrees of freedom is the textbook one.
    """
    inner = Estimated(math.log(value), stderr / value, degrees_of_freedom).interval("t on the log scale, items", alpha)
    return exponential(inner)


def exponential(interval: Interval) -> Interval:
    """From the log scale back."""
    low, high = (math.exp(end) if end < 700 else math.inf for end in (interval.low, interval.high))
    return Interval(low, high, interval.method)


# --- seeds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedSpread:
    """How far the seeds of one method lie apart, pooled over its settings.

    Attributes:
        part: variance of the score of one seed, and its degrees of freedom (seeds - settings).
        residual: that part of it which is noise of single items (it is in every item's spread as well); None where outcomes
            per item are missing.
        settings: how many settings with several seeds it was measured on.
    """

    part: Part
    residual: float | None
    settings: int


def seed_spread(groups: Sequence[Sequence[float]], residuals: Sequence[float | None]) -> SeedSpread | None:
    """Pooled variance of single seeds: sum of squares within settings over the sum of (seeds - 1).

    Args:
        groups: per setting the score of each seed; those with one seed tell nothing.
        residuals: per setting the variance that the noise of single items gives the mean of one seed, or None.
    """
    told = [(np.asarray(g, dtype=float), r) for g, r in zip(groups, residuals, strict=True) if len(g) > 1]
    if not told:
        return None
    degrees = sum(len(group) - 1 for group, _ in told)
    squares = sum(float(np.square(group - group.mean()).sum()) for group, _ in told)
    known = [(len(group) - 1, residual) for group, residual in told if residual is not None]
    residual = sum(d * r for d, r in known) / sum(d for d, _ in known) if len(known) == len(told) else None
    return SeedSpread(Part(squares / degrees, degrees), residual, len(told))


def item_residual(tasks: Sequence[np.ndarray], weights: Sequence[float]) -> float:
    """Variance that the seed-by-item interaction gives one seed's weighted mean over tasks of (seeds, items) outcomes.

    It is the residual mean square of the two-way table without replication, over the number of items.
    Source: any text on two-way random effects, such as Searle, Casella and McCulloch, Variance Components, chapter 4.
    """
    total = 0.0
    for weight, table in zip(weights, tasks, strict=True):
        seeds, n = table.shape
        rest = table - table.mean(axis=0)[None, :] - table.mean(axis=1)[:, None] + table.mean()
        total += weight**2 * float(np.square(rest).sum()) / ((seeds - 1) * (n - 1)) / n
    return total


def items_parts(tasks: Sequence[np.ndarray], weights: Sequence[float]) -> list[Part]:
    """The items' parts of the error of a weighted mean over tasks, one a task, from each item's outcome (its mean over seeds)."""
    return [Part(weight**2 * float(items.var(ddof=1)) / len(items), len(items) - 1) for weight, items in zip(weights, tasks, strict=True)]


def less(parts: Sequence[Part], variance: float) -> list[Part]:
    """`parts` with `variance` taken off, in proportion; never below 0."""
    total = sum(part.variance for part in parts)
    share = max(1 - variance / total, 0.0) if total > 0 else 0.0
    return [Part(share * part.variance, part.degrees_of_freedom) for part in parts]


def over_seeds(parts: Sequence[Part], seeds: int, spread: SeedSpread | None) -> list[Part]:
    """The parts of the error of a mean over `seeds` seeds on the same items: items, and seeds where their spread is known.

    Var = items + spread / seeds, where the noise of single items, which the spread of seeds holds already, is taken off the
    items' part. Items are shared by all seeds, so their part does not shrink with the number of seeds.
    """
    if spread is None:
        return list(parts)
    kept = less(parts, spread.residual / seeds) if spread.residual is not None else list(parts)
    return [*kept, Part(spread.part.variance / seeds, spread.part.degrees_of_freedom)]


def seeds_of_difference(sides: Sequence[tuple[SeedSpread | None, int]]) -> tuple[list[Part], float]:
    """What the seeds of two rows give the error of their difference.

    Args:
        sides: of each row the spread of its seeds (None where it is not known, or the row has none) and their number.
    Returns:
        The parts of the error, and the noise of single items that they hold. Rows that share one measured spread (two settings of
        a method) share its degrees of freedom too: their parts are one.
    """
    variances: dict[int, tuple[SeedSpread, float]] = {}
    for spread, seeds in sides:
        if spread is not None:
            variances[id(spread)] = (spread, variances.get(id(spread), (spread, 0.0))[1] + spread.part.variance / seeds)
    noise = sum((spread.residual or 0.0) / seeds for spread, seeds in sides if spread is not None)
    return [Part(variance, spread.part.degrees_of_freedom) for spread, variance in variances.values()], noise


# --- tests -----------------------------------------------------------------------------------------------------------


def mcnemar_exact(a_only: int, b_only: int) -> float:
    """Exact two-sided McNemar test: of the items that just one model got right, is it a fair coin?

    Source: Q. McNemar, Psychometrika 12 (1947), with the binomial distribution.
    """
    discordant = a_only + b_only
    if discordant == 0:
        return 1.0
    return float(stats.binomtest(a_only, discordant, 0.5).pvalue)


def mcnemar_of(a: np.ndarray, b: np.ndarray) -> tuple[int, int, float]:
    """(right in a only, right in b only, exact p) of two aligned 0/1 arrays."""
    a_only, b_only = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    return a_only, b_only, mcnemar_exact(a_only, b_only)


def paired_part(items: np.ndarray, weight: float, pseudo_pairs: float = 0.0) -> Part:
    """The items' part of the error of one task's mean difference.

    Args:
        items: (n,) a's outcome minus b's, at least two.
        pseudo_pairs: so many differences of 1 are added, half of them with a minus. For right-or-wrong outcomes, where few
            items tell two models apart, the plain variance is too small: 4 of 10,000 items, all in one direction, would be
            p = 0.045, exactly it is 0.125. With 2 in all of the suite's tasks it is 0.10.
    Source: D. G. Bonett and R. M. Price, Adjusted Wald interval for a difference of binomial proportions based on paired data,
        Journal of Educational and Behavioral Statistics 37 (2012); we spread its two pseudo-pairs over the tasks of a suite.
    """
    n = len(items) + pseudo_pairs
    squares, total = float(np.square(items).sum()) + pseudo_pairs, float(items.sum())
    variance = max(squares - total**2 / n, 0.0) / (n - 1)
    return Part(weight**2 * variance / n, len(items) - 1)


def paired_t(
    differences: Sequence[np.ndarray],
    weights: Sequence[float] | None = None,
    *,
    is_right_or_wrong: bool = False,
    residual: float = 0.0,
    seeds: Sequence[Part] = (),
    alpha: float = ALPHA,
) -> Comparison:
    """Paired t test of a weighted mean over tasks of the mean difference per item.

    Args:
        differences: per task (n,) a's outcome minus b's on the same items, at least two of them; means over seeds where there
            are several.
        weights: of the tasks, summing to 1; default equal (the unweighted suite mean).
        is_right_or_wrong: outcomes are 0 or 1, from one seed each; see `paired_part`.
        residual: variance of the noise of single items that `seeds` holds already.
        seeds: the parts of the error that the two models' seeds give the difference.
    Returns:
        With one task and no seeds the textbook paired t test with n - 1 degrees of freedom; otherwise Satterthwaite's. Where
        all items differ by the same amount there is no spread to test against, and p is that of the exact sign test.
    """
    shares = np.full(len(differences), 1 / len(differences)) if weights is None else np.asarray(weights, dtype=float)
    tasks = [np.asarray(task, dtype=float) for task in differences]
    n = sum(map(len, tasks))
    if min(map(len, tasks)) < 2:
        raise ValueError("a paired test needs two items of every task.")
    difference = float(sum(share * task.mean() for share, task in zip(shares, tasks, strict=True)))
    pseudo = PSEUDO_PAIRS / len(tasks) if is_right_or_wrong else 0.0
    parts = [paired_part(task, share, pseudo) for share, task in zip(shares, tasks, strict=True)]
    seeds = [part for part in seeds if part.variance > 0]
    if residual and seeds:
        parts = less(parts, residual)
    method = "paired t over items and seeds" if seeds else "paired t over items"
    found = combine(difference, [*parts, *seeds])
    if found.stderr <= 1e-12 * abs(difference):
        p_value = 1.0 if difference == 0 else min(1.0, 2.0 ** (1 - n))
        return Comparison(difference, 0.0, Interval(difference, difference, method), p_value, method, n)
    return _tested(found, method, n, alpha, sum(part.variance for part in seeds))


def unpaired_t(a: float, a_parts: Sequence[Part], b: float, b_parts: Sequence[Part], *, n: int = 0, alpha: float = ALPHA) -> Comparison:
    """Welch's test, for two scores whose outcomes per item are missing: wider than a paired test would be.

    Source: B. L. Welch, Biometrika 34 (1947).
    """
    method = "unpaired t (no outcomes per item)"
    found = combine(a - b, [*a_parts, *b_parts])
    if found.stderr == 0:
        return Comparison(a - b, 0.0, Interval(a - b, a - b, method), 1.0, method, n)
    return _tested(found, method, n, alpha)


def _tested(found: Estimated, method: str, n: int, alpha: float, of_seeds: float = 0.0) -> Comparison:
    p_value = min(1.0, 2 * t_tail(abs(found.value) / found.stderr, found.degrees_of_freedom))
    return Comparison(found.value, found.stderr, found.interval(method, alpha), p_value, method, n, found.degrees_of_freedom, of_seeds)


def above_chance(successes: int, n: int, chance: float) -> float:
    """One-sided exact binomial p of so many right items or more, were the model guessing."""
    return float(stats.binom.sf(successes - 1, n, chance))


def above_level(value: float, stderr: float, degrees_of_freedom: float, level: float) -> float:
    """One-sided t p of a value as high or higher, were the truth `level`; for scores that are no count of items."""
    if stderr <= 0:
        return 0.0 if value > level else 1.0
    return t_tail((value - level) / stderr, degrees_of_freedom)


# --- corrections and ranks -------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (family-wise error), in the order given.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979). scipy has no routine for it.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values (false discovery rate), in the order given.

    Source: Y. Benjamini and Y. Hochberg, JRSS B 57 (1995); scipy's routine.
    """
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(np.asarray(p_values, dtype=float), method="bh")]


@dataclass(frozen=True)
class Rank:
    """Between which places a method stands: 1 + those that are better, and the number of methods less those that are worse."""

    low: int
    high: int

    @property
    def is_shared(self) -> bool:
        return self.low < self.high


def rank_ranges(count: int, beats: Sequence[tuple[int, int]]) -> list[Rank]:
    """The places that each of `count` methods may have; simultaneous, since the tests behind them were corrected together.

    Args:
        beats: pairs (winner, loser) that passed the corrected test.
    Source: Mogstad, Romano, Shaikh and Wilhelm, Inference for ranks, Review of Economic Studies 91 (2024), section 3.
    """
    better, worse = [0] * count, [0] * count
    for winner, loser in set(beats):
        better[loser] += 1
        worse[winner] += 1
    return [Rank(1 + up, count - down) for up, down in zip(better, worse, strict=True)]


def minimum_detectable_difference(
    stderr: float, degrees_of_freedom: float = math.inf, *, alpha: float = ALPHA, power: float = POWER, tests: int = 1
) -> float:
    """The smallest true difference that a two-sided t test at alpha / tests finds with the given power.

    The sum of the two t quantiles, for the level and for the power, times the standard error: within a few per cent of the
    non-central t. Source: J. Cohen, Statistical Power Analysis (1988), chapter 2.
    """
    quantiles = t_quantile(1 - alpha / (2 * tests), degrees_of_freedom) + t_quantile(power, degrees_of_freedom)
    return quantiles * stderr


def times_needed(difference: float, found: Comparison, tests: int) -> tuple[float, bool]:
    """By how much a sample must grow for a true difference of this size to be found with 80 % power.

    Returns:
        The factor, and whether it is the seeds that must be more (their error alone is too large) or, if not, the items.
    """
    target = (difference / minimum_detectable_difference(1.0, tests=tests)) ** 2
    of_items = max(found.stderr**2 - found.of_seeds, 0.0)
    if target <= 0:
        return math.inf, False
    if found.of_seeds >= target / 2:
        return 2 * found.of_seeds / target, True
    return of_items / (target - found.of_seeds), False


# --- ratios ----------------------------------------------------------------------------------------------------------


def ratio(
    top: Sequence[np.ndarray],
    bottom: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    residual: float = 0.0,
    seeds: Sequence[Part] = (),
    alpha: float = ALPHA,
) -> tuple[float, Interval | None]:
    """The ratio of two weighted means over tasks on the same items, with Fieller's interval.

    Args:
        top, bottom: per task (n,) outcomes, with whatever is subtracted (a chance level) already subtracted.
        residual, seeds: as in `paired_t`, of the top; the bottom has no seeds.
    Returns:
        The ratio, and its interval; None where the bottom is not told apart from 0, and every ratio is possible.
    Source: E. C. Fieller, Some problems in interval estimation, JRSS B 16 (1954). It inverts the t test of top - r x bottom = 0,
        so it holds its level where the delta method does not (a dense model little above chance).
    """
    mean_top = sum(w * float(task.mean()) for w, task in zip(weights, top, strict=True))
    mean_bottom = sum(w * float(task.mean()) for w, task in zip(weights, bottom, strict=True))
    if mean_bottom == 0:
        return math.nan, None
    share = mean_top / mean_bottom
    differences = [t - share * b for t, b in zip(top, bottom, strict=True)]
    parts = items_parts(differences, weights)
    seeds = [part for part in seeds if part.variance > 0]
    quantile = t_quantile(1 - alpha / 2, combine(share, [*(less(parts, residual) if seeds else parts), *seeds]).degrees_of_freedom)
    of_top = sum(part.variance for part in items_parts(top, weights))
    of_top = max(of_top - (residual if seeds else 0.0), 0.0) + sum(part.variance for part in seeds)
    of_bottom = sum(part.variance for part in items_parts(bottom, weights))
    shared = sum(w**2 * float(np.cov(t, b)[0, 1]) / len(t) for w, t, b in zip(weights, top, bottom, strict=True))
    return share, fieller(mean_top, mean_bottom, of_top, of_bottom, shared, quantile)


def fieller(top: float, bottom: float, of_top: float, of_bottom: float, shared: float, quantile: float) -> Interval | None:
    """Fieller's interval from the two means, their variances and covariance, and a t quantile; None where it has no ends."""
    a = bottom**2 - quantile**2 * of_bottom
    b = top * bottom - quantile**2 * shared
    c = top**2 - quantile**2 * of_top
    if a <= 0:
        return None
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return Interval((b - root) / a, (b + root) / a, "Fieller, items")


def pareto_front(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Indices that no other point beats (lower cost, higher quality), by rising cost."""
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -quality[i])):
        if quality[index] > best:
            front.append(index)
            best = quality[index]
    return front
