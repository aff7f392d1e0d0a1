"""Intervals, paired tests, corrections and ranks. Pure functions on numbers and arrays; no records here.

Conventions: a fraction is in [0, 1]; `alpha` is two-sided; outcomes of two models are compared on the same items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05
POWER = 0.8
BOOTSTRAP_DRAWS = 10_000
_CATEGORY_LIMIT = 64


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
class Comparison:
    """Paired difference a - b with its test."""

    difference: float
    stderr: float
    interval: Interval
    p_value: float
    method: str
    n: int


def wilson_interval(successes: int, n: int, alpha: float = ALPHA) -> Interval:
    """Wilson score interval of a fraction; holds its level where the normal one does not (small n, near 0 or 1)."""
    found = stats.binomtest(successes, n).proportion_ci(confidence_level=1 - alpha, method="wilson")
    return Interval(float(found.low), float(found.high), "Wilson, documents")


def normal_interval(value: float, stderr: float, alpha: float = ALPHA) -> Interval:
    half = float(stats.norm.ppf(1 - alpha / 2)) * stderr
    return Interval(value - half, value + half, "normal, documents")


def log_normal_interval(value: float, stderr: float, alpha: float = ALPHA) -> Interval:
    """Interval of a positive quantity such as perplexity: symmetric on the log scale (delta method)."""
    half = float(stats.norm.ppf(1 - alpha / 2)) * stderr / value
    return Interval(value * math.exp(-half), value * math.exp(half), "log-normal, documents")


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds, its standard error (documents and seeds) and the degrees of freedom of that error."""

    value: float
    stderr: float
    degrees_of_freedom: float

    def interval(self, alpha: float = ALPHA) -> Interval:
        half = float(stats.t.ppf(1 - alpha / 2, self.degrees_of_freedom)) * self.stderr
        return Interval(self.value - half, self.value + half, "t, documents and seeds")


def seed_mean(values: Sequence[float], document_stderrs: Sequence[float | None], documents: int) -> SeedMean:
    """Mean of one score over seeds that were scored on the same documents, without the per-document outcomes.

    The documents are shared, so their error does not shrink with the number of seeds; the seeds' own spread does.
    Adding both is a little too wide (the spread of the seeds holds some document noise), never too narrow.
    """
    array = np.asarray(values, dtype=float)
    known = [s for s in document_stderrs if s is not None]
    of_documents = float(np.mean(np.square(known))) if known else 0.0
    of_seeds = float(array.var(ddof=1)) / len(array)
    return _seed_mean(float(array.mean()), of_documents, max(documents - 1, 1), of_seeds, len(array) - 1)


def seed_mean_from_outcomes(outcomes: np.ndarray) -> SeedMean:
    """Mean of (seeds, documents) outcomes: two-way random effects, seeds crossed with documents."""
    return suite_seed_mean([outcomes], [1.0])


def suite_seed_mean(tasks: Sequence[np.ndarray], weights: Sequence[float]) -> SeedMean:
    """Weighted mean over tasks of (seeds, documents) outcomes, the same seeds in every task.

    Var(mean) = documents + seeds, where documents = sum of w^2 [s2(document means) - s2(residual) / seeds] / documents
    and seeds = s2(suite mean of each seed) / seeds; the residual is in the spread of the seeds already, so it is taken
    off the documents' part.
    """
    seeds = tasks[0].shape[0]
    of_documents, documents = 0.0, 0
    by_seed = np.zeros(seeds)
    for weight, table in zip(weights, tasks, strict=True):
        n = table.shape[1]
        documents += n
        by_document, seed_means = table.mean(axis=0), table.mean(axis=1)
        by_seed += weight * seed_means
        residual = table - by_document[None, :] - seed_means[:, None] + table.mean()
        of_residual = float(np.square(residual).sum()) / ((seeds - 1) * (n - 1)) / (seeds * n)
        of_documents += weight**2 * max(float(by_document.var(ddof=1)) / n - of_residual, 0.0)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    return _seed_mean(float(by_seed.mean()), of_documents, max(documents - len(tasks), 1), of_seeds, seeds - 1)


def _seed_mean(mean: float, of_documents: float, document_df: float, of_seeds: float, seed_df: float) -> SeedMean:
    variance = of_documents + of_seeds
    if variance <= 0:
        return SeedMean(mean, 0.0, seed_df)
    degrees = variance**2 / (of_documents**2 / document_df + of_seeds**2 / seed_df)  # Satterthwaite
    return SeedMean(mean, math.sqrt(variance), degrees)


def mcnemar_exact(a_only: int, b_only: int) -> float:
    """Exact two-sided McNemar test: of the items that just one model got right, is it a fair coin?"""
    discordant = a_only + b_only
    if discordant == 0:
        return 1.0
    return float(stats.binomtest(a_only, discordant, 0.5).pvalue)


def mcnemar_of(a: np.ndarray, b: np.ndarray) -> tuple[int, int, float]:
    """(right in a only, right in b only, exact p) of two aligned 0/1 arrays."""
    a_only, b_only = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    return a_only, b_only, mcnemar_exact(a_only, b_only)


def paired_bootstrap(
    differences: Sequence[np.ndarray],
    weights: Sequence[float] | None = None,
    *,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
    alpha: float = ALPHA,
) -> Comparison:
    """Weighted mean over tasks of the mean difference per item, items resampled within each task.

    Args:
        differences: per task, a's outcome minus b's on the same items.
        weights: of the tasks, summing to 1; default equal (the unweighted suite mean).
    Returns:
        Percentile interval and two-sided p, (1 + draws on the far side of 0) / (1 + draws), doubled.

    A resample of n items only sees how often each distinct difference was drawn, so it is drawn as a multinomial over
    the distinct values: the same distribution, without n draws.
    """
    shares = np.full(len(differences), 1 / len(differences)) if weights is None else np.asarray(weights, dtype=float)
    rng = np.random.default_rng(seed)
    sampled = np.zeros(draws)
    observed = variance = 0.0
    n = 0
    for share, task in zip(shares, differences, strict=True):
        items = np.asarray(task, dtype=float)
        n += len(items)
        observed += share * float(items.mean())
        variance += share**2 * (float(items.var(ddof=1)) / len(items) if len(items) > 1 else 0.0)
        sampled += share * _resampled_means(items, draws, rng)
    low, high = np.quantile(sampled, [alpha / 2, 1 - alpha / 2])
    side = min(int((sampled <= 0).sum()), int((sampled >= 0).sum()))
    p_value = min(1.0, 2 * (side + 1) / (draws + 1))
    return Comparison(observed, math.sqrt(variance), Interval(float(low), float(high), "bootstrap"), p_value, "paired bootstrap", n)


def _resampled_means(items: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    values, counts = np.unique(items, return_counts=True)
    n = len(items)
    if len(values) == 1:
        return np.full(draws, values[0])
    if len(values) <= _CATEGORY_LIMIT:
        return rng.multinomial(n, counts / n, size=draws) @ values / n
    means = np.empty(draws)
    step = max(1, 2_000_000 // n)
    for start in range(0, draws, step):
        stop = min(start + step, draws)
        means[start:stop] = items[rng.integers(0, n, size=(stop - start, n))].mean(axis=1)
    return means


def paired_t(
    item_differences: Sequence[np.ndarray],
    weights: Sequence[float] | None,
    a_seed_means: Sequence[float],
    b_seed_means: Sequence[float],
    *,
    alpha: float = ALPHA,
) -> Comparison:
    """Difference of two methods with several seeds each: document error (paired) plus each method's seed error.

    Args:
        item_differences: per task, difference of the two methods' item means over seeds.
        a_seed_means, b_seed_means: suite mean of every seed; one value means that seed error is unknown and left out.
    """
    shares = np.full(len(item_differences), 1 / len(item_differences)) if weights is None else np.asarray(weights, dtype=float)
    difference = of_documents = 0.0
    n = 0
    for share, task in zip(shares, item_differences, strict=True):
        items = np.asarray(task, dtype=float)
        n += len(items)
        difference += share * float(items.mean())
        of_documents += share**2 * (float(items.var(ddof=1)) / len(items) if len(items) > 1 else 0.0)
    parts = [(of_documents, max(n - 1, 1))]
    for means in (a_seed_means, b_seed_means):
        if len(means) > 1:
            parts.append((float(np.var(means, ddof=1)) / len(means), len(means) - 1))
    return _from_parts(difference, parts, n, "paired t over documents and seeds", alpha)


def unpaired_z(a: float, a_stderr: float, b: float, b_stderr: float, *, n: int = 0, alpha: float = ALPHA) -> Comparison:
    """Difference of two scores when outcomes per item are missing: wider than a paired test would be."""
    return _from_parts(a - b, [(a_stderr**2 + b_stderr**2, math.inf)], n, "unpaired z (no outcomes per item)", alpha)


def _from_parts(difference: float, parts: Sequence[tuple[float, float]], n: int, method: str, alpha: float) -> Comparison:
    variance = sum(part for part, _ in parts)
    stderr = math.sqrt(variance)
    if variance == 0:
        same = Interval(difference, difference, method)
        return Comparison(difference, 0.0, same, 1.0 if difference == 0 else 0.0, method, n)
    spread = sum(part**2 / degrees for part, degrees in parts)
    degrees = variance**2 / spread if spread > 0 else math.inf
    difference = float(difference)
    half = float(stats.t.ppf(1 - alpha / 2, degrees)) * stderr
    p_value = float(2 * stats.t.sf(abs(difference) / stderr, degrees))
    return Comparison(difference, stderr, Interval(difference - half, difference + half, method), p_value, method, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (family-wise error), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values (false discovery rate), in the order given."""
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(np.asarray(p_values, dtype=float), method="bh")]


def shared_ranks(count: int, beats: Sequence[tuple[int, int]]) -> list[int]:
    """Rank of each of `count` methods: 1 + how many are significantly better than it.

    Args:
        beats: pairs (winner, loser) that passed the corrected test.
    """
    ranks = [1] * count
    for _, loser in beats:
        ranks[loser] += 1
    return ranks


def minimum_detectable_difference(stderr: float, *, alpha: float = ALPHA, power: float = POWER, tests: int = 1) -> float:
    """The smallest true difference that a two-sided test at alpha / tests finds with the given power."""
    return float(stats.norm.ppf(1 - alpha / (2 * tests)) + stats.norm.ppf(power)) * stderr


def retention(value: float, dense: float, value_stderr: float, dense_stderr: float, covariance: float = 0.0) -> tuple[float, float]:
    """value / dense and its standard error by the delta method."""
    share = value / dense
    variance = (value_stderr**2 - 2 * share * covariance + share**2 * dense_stderr**2) / dense**2
    return share, math.sqrt(max(variance, 0.0))


def pareto_front(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Indices that no other point beats (lower cost, higher quality), by rising cost."""
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -quality[i])):
        if quality[index] > best:
            front.append(index)
            best = quality[index]
    return front
