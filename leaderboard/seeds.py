"""How far the seeds of a method lie apart, measured where several were run and put in where only one was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.samples import Outcomes
from prunebench.leaderboard.scores import Suite
from prunebench.leaderboard.statistics import SeedSpread, item_residual, seed_spread

Weights = tuple[tuple[str, float], ...]
"""Tasks with their weights, whose weighted mean is the quantity."""


def of_suite(suite: Suite) -> Weights | None:
    """The suite mean as weights of its tasks; None where the tasks don't give the recorded mean."""
    return None if suite.weights is None else tuple(zip(suite.task_order, suite.weights, strict=True))


def of_task(name: str) -> Weights:
    return ((name, 1.0),)


def levels(suite: Suite, weights: Weights) -> list[float] | None:
    """The quantity of each seed, on the scale of the tests; None where a task has no score of every seed."""
    scores = [suite.tasks.get(name) for name, _ in weights]
    if any(score is None or score.seeds != len(suite.scored) for score in scores):
        return None
    if len(weights) > 1 and any(score is not None and score.is_log for score in scores):
        return None  # the logarithm of a mean of perplexities is no mean of logarithms
    by_task = [(weight, score.seed_levels) for (_, weight), score in zip(weights, scores, strict=True) if score is not None]
    return [sum(weight * seeds[i] for weight, seeds in by_task) for i in range(len(suite.scored))]


def residual(outcomes: Outcomes | None, weights: Weights) -> float | None:
    """Noise of single items in one seed's quantity; None without several seeds' outcomes of two items or more."""
    if outcomes is None or any(name not in outcomes.tasks for name, _ in weights):
        return None
    tables = [outcomes.tasks[name] for name, _ in weights]
    if any(table.shape[0] < 2 or table.shape[1] < 2 for table in tables):
        return None
    return item_residual(tables, [weight for _, weight in weights])


LEAST_DEGREES = 3
"""So many degrees of freedom (seeds - settings) a race must have for its own spread; below, that of all races is steadier."""


@dataclass
class Spreads:
    """The spread of seeds in one suite of one model: of the method in the same race where that has enough seeds, else in all races.

    It is pooled over all settings of the method, so that a row with more seeds never has a larger error than one with fewer.
    """

    suite_id: str
    outcomes: Mapping[int, Outcomes | None]
    entries: list[Entry]
    found: dict[tuple[Hashable, Weights], SeedSpread | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups: dict[Hashable, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            for key in _pools(entry):
                self.groups[key].append(entry)

    def of(self, entry: Entry, weights: Weights) -> SeedSpread | None:
        """The spread of single seeds of a quantity; None for the dense model, and where no setting had several seeds."""
        if entry.is_dense:
            return None
        spread = None
        for key in _pools(entry):
            if (key, weights) not in self.found:
                self.found[(key, weights)] = self._measured(self.groups[key], weights)
            spread = self.found[(key, weights)]
            if spread is not None and spread.part.degrees_of_freedom >= LEAST_DEGREES:
                break
        return spread

    def _measured(self, group: list[Entry], weights: Weights) -> SeedSpread | None:
        told = [(entry, levels(entry.suites[self.suite_id], weights)) for entry in group]
        several = [(entry, values) for entry, values in told if values is not None and len(values) > 1]
        return seed_spread([values for _, values in several], [residual(self.outcomes.get(e.id), weights) for e, _ in several])


def _pools(entry: Entry) -> tuple[tuple[Any, ...], ...]:
    """Where a spread is looked for, the nearest first."""
    return ((entry.race, entry.contender), (entry.contender,))
