"""From item outcomes to values with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prunebench.evaluation.outcomes import ItemOutcome, Part
from prunebench.evaluation.results import Estimate

PERPLEXITIES = ("token_perplexity", "perplexity")
"""Metrics whose items hold log-likelihoods: exp(-sum / weight), lower is better."""

LN2 = math.log(2.0)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (sample standard deviation over the root of n), as the harness computes them."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(value=mean, stderr=None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(value=mean, stderr=math.sqrt(variance / n))


def perplexity_estimate(logs: Sequence[float], weights: Sequence[float]) -> Estimate:
    """exp(-sum(logs) / sum(weights)); standard error by the ratio estimator over items and the delta method."""
    total, n = math.fsum(weights), len(logs)
    mean = -math.fsum(logs) / total
    value = math.exp(mean) if mean < 700 else math.inf
    if n < 2 or not math.isfinite(value):
        return Estimate(value=value, stderr=None)
    squares = math.fsum((-log - mean * weight) ** 2 for log, weight in zip(logs, weights, strict=True))
    return Estimate(value=value, stderr=value * math.sqrt(squares * n / (n - 1)) / total)


def estimate(metric: str, outcomes: Sequence[ItemOutcome]) -> Estimate:
    """One metric over items."""
    kept = [outcome for outcome in outcomes if metric in outcome.metrics]
    values = [outcome.metrics[metric] for outcome in kept]
    if metric in PERPLEXITIES:
        weights = [outcome.weight if metric == "token_perplexity" else 1.0 for outcome in kept]
        return perplexity_estimate(values, weights)
    return mean_estimate(values)


def stratified_estimate(metric: str, strata: Sequence[Sequence[ItemOutcome]]) -> Estimate:
    """Unweighted mean of the strata's values; a stratum of one item takes the pooled variance of the others."""
    parts = [estimate(metric, outcomes) for outcomes in strata]
    value = math.fsum(part.value for part in parts) / len(parts)
    spreads = [part.stderr**2 * len(outcomes) for part, outcomes in zip(parts, strata, strict=True) if part.stderr is not None]
    if not spreads:
        everything = [outcome for outcomes in strata for outcome in outcomes]
        return Estimate(value=value, stderr=estimate(metric, everything).stderr)
    typical = math.fsum(spreads) / len(spreads)
    variance = math.fsum(
        part.stderr**2 if part.stderr is not None else typical / len(outcomes) for part, outcomes in zip(parts, strata, strict=True)
    )
    return Estimate(value=value, stderr=math.sqrt(variance) / len(parts))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of independent estimates."""
    value = math.fsum(part.value for part in estimates) / len(estimates)
    if any(part.stderr is None for part in estimates):
        return Estimate(value=value, stderr=None)
    variance = math.fsum((part.stderr or 0.0) ** 2 for part in estimates)
    return Estimate(value=value, stderr=math.sqrt(variance) / len(estimates))


def chance_level(rule: float | str, parts: Sequence[Part], is_pooled: bool) -> float | None:
    """What guessing gives: a constant, one over the number of choices, or always the most frequent gold answer."""
    if isinstance(rule, float | int):
        return float(rule)
    values: list[tuple[float, int]] = []
    for part in parts:
        if rule == "majority":
            if part.majority is None:
                return None
            values.append((part.majority, len(part.outcomes)))
        else:
            guesses = [1.0 / outcome.num_choices for outcome in part.outcomes if outcome.num_choices]
            if not guesses:
                return None
            values.append((math.fsum(guesses) / len(guesses), len(part.outcomes)))
    if is_pooled:
        return math.fsum(value * n for value, n in values) / sum(n for _, n in values)
    return math.fsum(value for value, _ in values) / len(values)


def all_estimates(parts: dict[str, Part], is_pooled: bool) -> dict[str, Estimate]:
    """Every metric over the whole task, and `metric[stratum]` for each stratum of a divided task."""
    outcomes = [outcome for part in parts.values() for outcome in part.outcomes]
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.metrics))
    overall: Callable[[str], Estimate] = (
        (lambda name: estimate(name, outcomes))
        if is_pooled or len(parts) == 1
        else (lambda name: stratified_estimate(name, [part.outcomes for part in parts.values()]))
    )
    found = {name: overall(name) for name in names}
    if len(parts) > 1:
        for name in names:
            for stratum, part in parts.items():
                found[f"{name}[{stratum}]"] = estimate(name, part.outcomes)
    return found
