"""What the dense model can do, and how much of that a pruned one keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunebench.leaderboard.samples import Outcomes
from prunebench.leaderboard.scores import Score, Suite
from prunebench.leaderboard.seeds import Weights
from prunebench.leaderboard.statistics import (
    ALPHA,
    Interval,
    SeedSpread,
    above_chance,
    above_level,
    combine,
    fieller,
    holm,
    over_seeds,
    ratio,
    t_quantile,
)

COLLAPSED_PERPLEXITY = 10.0
"""So many times the dense perplexity and a model no longer predicts the text."""


@dataclass(frozen=True)
class Kept:
    """A share of the dense model's score, with its interval where it has one.

    Attributes:
        tasks: whose mean it is of; empty for all tasks of the suite.
        is_paired: from outcomes of the same items.
    """

    value: float
    interval: Interval | None
    tasks: tuple[str, ...] = ()
    is_paired: bool = True


@dataclass(frozen=True)
class Able:
    """Of a suite with chance levels the tasks on which the dense model is above chance, and the others."""

    tasks: tuple[str, ...]
    at_chance: tuple[str, ...]

    def weights(self, suite: Suite) -> Weights:
        """The able tasks with the protocol's weights (equal ones where it has none), summing to 1."""
        given = dict(zip(suite.task_order, suite.weights, strict=True)) if suite.weights else {}
        weights = [given.get(task, 1.0) for task in self.tasks]
        return tuple((task, weight / sum(weights)) for task, weight in zip(self.tasks, weights, strict=True))


def tasks_above_chance(suite: Suite) -> Able | None:
    """On which tasks a model is above chance: one-sided tests, Holm-corrected over the tasks; None where no task has a chance level.

    Exact binomial for the right items of one seed, t where the score is no plain share or has several seeds.
    """
    told = [(name, score) for name, score in suite.tasks.items() if score.chance is not None]
    if not told:
        return None
    corrected = holm([_p_above_chance(score) for _, score in told])
    tasks = tuple(name for (name, _), p in zip(told, corrected, strict=True) if p < ALPHA)
    return Able(tasks, tuple(name for name, _ in told if name not in tasks))


def _p_above_chance(score: Score) -> float:
    assert score.chance is not None
    hits = score.value * score.n
    is_share = score.kind == "percent" and 0 <= score.value <= 1 and abs(hits - round(hits)) < 1e-6 * max(score.n, 1)
    if score.seeds == 1 and is_share and score.n:
        return above_chance(round(hits), score.n, score.chance)
    if not score.parts:
        return 1.0
    found = combine(score.level, score.parts)
    return above_level(found.value, found.stderr, found.degrees_of_freedom, score.chance)


def is_collapsed(suite: Suite, dense: Suite | None) -> bool:
    """A model that lost everything: 10 times the dense perplexity, or above chance on no task at all."""
    mean = suite.mean
    if mean is None:
        return False
    if mean.kind == "perplexity":
        return dense is not None and dense.mean is not None and mean.value > COLLAPSED_PERPLEXITY * dense.mean.value
    able = tasks_above_chance(suite)
    return able is not None and not able.tasks


def kept_above_chance(
    suite: Suite, dense: Suite, able: Able, own: Outcomes | None, of_dense: Outcomes | None, spread: SeedSpread | None
) -> Kept | None:
    """(pruned - chance) / (dense - chance), of the mean over the tasks that the dense model can do.

    Args:
        own, of_dense: outcomes per item; None makes the interval that of independent samples, which is wider.
        spread: of the seeds of that mean.
    """
    if any(task not in suite.tasks or task not in dense.tasks for task in able.tasks) or not able.tasks:
        return None
    weights = able.weights(dense)
    chances = [dense.tasks[task].chance or 0.0 for task, _ in weights]
    found = _share(suite, dense, weights, chances, own, of_dense, spread)
    return None if found is None else Kept(found.value, found.interval, able.tasks, found.is_paired)


def kept_of_mean(
    suite: Suite, dense: Suite, weights: Weights | None, own: Outcomes | None, of_dense: Outcomes | None, spread: SeedSpread | None
) -> Kept | None:
    """pruned / dense of the suite mean, chance included: what papers call relative performance."""
    if suite.mean is None or dense.mean is None or dense.mean.value == 0:
        return None
    if weights is None:
        return Kept(suite.mean.value / dense.mean.value, None, is_paired=False)
    found = _share(suite, dense, weights, [0.0] * len(weights), own, of_dense, spread)
    return found or Kept(suite.mean.value / dense.mean.value, None, is_paired=False)


def _share(
    suite: Suite,
    dense: Suite,
    weights: Weights,
    chances: Sequence[float],
    own: Outcomes | None,
    of_dense: Outcomes | None,
    spread: SeedSpread | None,
) -> Kept | None:
    seeds = len(suite.scored)
    names, shares = [name for name, _ in weights], [weight for _, weight in weights]
    parts = [] if spread is None else over_seeds([], seeds, spread)
    noise = 0.0 if spread is None or spread.residual is None else spread.residual / seeds
    if own is not None and of_dense is not None and all(own.items.get(n) == of_dense.items.get(n) for n in names):
        top = [own.tasks[n].mean(axis=0) - chance for n, chance in zip(names, chances, strict=True)]
        bottom = [of_dense.tasks[n].mean(axis=0) - chance for n, chance in zip(names, chances, strict=True)]
        if min(map(len, top)) > 1:
            value, interval = ratio(top, bottom, shares, residual=noise, seeds=parts)
            return None if math.isnan(value) else Kept(value, interval)
    mine, theirs = [suite.tasks[n] for n in names], [dense.tasks[n] for n in names]
    above = sum(w * (s.value - c) for w, s, c in zip(shares, mine, chances, strict=True))
    below = sum(w * (s.value - c) for w, s, c in zip(shares, theirs, chances, strict=True))
    if below == 0:
        return None
    if not all(s.item_parts for s in [*mine, *theirs]):
        return Kept(above / below, None, is_paired=False)
    of_top = [*(_scaled(s, w) for w, s in zip(shares, mine, strict=True)), *(part.variance for part in parts)]
    of_bottom = [_scaled(s, w) for w, s in zip(shares, theirs, strict=True)]
    least = min([s.item_parts[0].degrees_of_freedom for s in [*mine, *theirs]] + [part.degrees_of_freedom for part in parts])
    interval = fieller(above, below, sum(of_top), sum(of_bottom), 0.0, t_quantile(1 - ALPHA / 2, least))
    return Kept(above / below, interval, is_paired=False)


def _scaled(score: Score, weight: float) -> float:
    return weight**2 * sum(part.variance for part in score.item_parts)
