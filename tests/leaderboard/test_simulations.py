"""What the intervals and tests promise on average: coverage, type I error, family-wise error, in simulations with fixed seeds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from prunebench.leaderboard import statistics as lb

NOMINAL = (0.93, 0.97)
TYPE_1 = (0.03, 0.07)
MANY = 2000
CHANCES = (0.5, 0.25, 0.25, 0.5)


def share(flags: Iterator[bool]) -> float:
    return float(np.mean(list(flags)))


def losses(rng: np.random.Generator, shape: tuple[int, ...], spread: float = 0.05) -> np.ndarray:
    """Noise of losses: a little skewed, as losses are (skewness 0.7), with mean 0."""
    return spread * (rng.gamma(8, size=shape) - 8) / np.sqrt(8)


def right(rng: np.random.Generator, skill: np.ndarray, same: float, count: int) -> np.ndarray:
    """(count, n) outcomes of models with the same skill (n,) on each item, alike on a share `same` of the items."""
    n = len(skill)
    common = rng.random(n) < skill
    own = rng.random((count, n)) < skill
    return np.where(rng.random(n) < same, common, own).astype(float)


# --- type I error


@pytest.mark.parametrize("blocks", [4, 8, 16, 64])
def test_perplexities_of_few_blocks_are_called_different_in_5_per_cent(blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    a, b = losses(rng, (MANY, blocks)), losses(rng, (MANY, blocks))
    assert TYPE_1[0] <= share(lb.paired_t([x]).p_value < 0.05 for x in a - b) <= TYPE_1[1]


@pytest.mark.parametrize(("sizes", "same"), [((200,) * 7, 0.8), ((200,) * 7, 0.4), ((100, 500, 1000), 0.7), ((60, 60, 60, 60), 0.5)])
def test_suite_means_are_called_different_in_5_per_cent(sizes: tuple[int, ...], same: float) -> None:
    rng = np.random.default_rng(sum(sizes) + int(100 * same))

    def outcome() -> float:
        pairs = [right(rng, rng.uniform(0.25, 0.85, n), same, 2) for n in sizes]
        return lb.paired_t([a - b for a, b in pairs], is_right_or_wrong=True).p_value

    assert TYPE_1[0] <= share(outcome() < 0.05 for _ in range(MANY)) <= TYPE_1[1]


@pytest.mark.parametrize("kind", ["blocks", "items"])
def test_of_17_equal_methods_one_is_called_better_in_at_most_7_per_cent(kind: str) -> None:
    rng = np.random.default_rng(17)
    pairs = [(i, j) for i in range(17) for j in range(i)]

    def alarm() -> bool:
        if kind == "blocks":
            outcomes = losses(rng, (17, 8)) + losses(rng, (1, 8), 0.3)
        else:
            outcomes = right(rng, rng.uniform(0.25, 0.85, 400), 0.5, 17)
        p_values = [lb.paired_t([outcomes[i] - outcomes[j]], is_right_or_wrong=kind == "items").p_value for i, j in pairs]
        return min(lb.holm(p_values)) < 0.05

    assert share(alarm() for _ in range(200)) <= 0.07


def test_a_difference_that_can_be_detected_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    blocks, spread = 12, 0.05
    true = lb.minimum_detectable_difference(spread * np.sqrt(2 / blocks), blocks - 1)
    noise = losses(rng, (MANY, blocks)) - losses(rng, (MANY, blocks))
    assert share(lb.paired_t([x]).p_value < 0.05 for x in noise + true) == pytest.approx(0.8, abs=0.04)


# --- seeds


@pytest.mark.parametrize("elsewhere", [(2, 2), (3,), (2, 2, 2, 2)])
def test_two_seeds_of_one_setting_are_called_different_in_at_most_10_per_cent(elsewhere: tuple[int, ...]) -> None:
    """Two checkpoints that differ in nothing but the seed, with the spread of seeds measured on other settings of the method."""
    rng = np.random.default_rng(len(elsewhere))
    blocks, shift = 8, 0.04

    def seeds(count: int, items: np.ndarray) -> np.ndarray:
        return items + rng.normal(0, shift, (count, 1)) + losses(rng, (count, blocks), 0.01)

    def p_values() -> tuple[float, float]:
        items = losses(rng, (blocks,), 0.3)
        tables = [seeds(count, items) for count in elsewhere]
        spread = lb.seed_spread([t.mean(axis=1) for t in tables], [lb.item_residual([t], [1.0]) for t in tables])
        a, b = seeds(2, items)
        parts, noise = lb.seeds_of_difference([(spread, 1), (spread, 1)])
        known = lb.paired_t([a - b], residual=noise, seeds=parts)
        return known.p_value, lb.paired_t([a - b]).p_value

    found = np.array([p_values() for _ in range(1000)])
    assert 0.02 <= (found[:, 0] < 0.05).mean() <= 0.10
    assert (found[:, 1] < 0.05).mean() > 0.5  # what the items alone would say


@pytest.mark.parametrize(("seeds", "seed_spread"), [(3, 0.02), (5, 0.05), (5, 0.01)])
def test_intervals_over_items_and_seeds_cover_as_often_as_they_say(seeds: int, seed_spread: float) -> None:
    """New items and new seeds in every simulation; the truth is the mean over both."""
    rng = np.random.default_rng(seeds * 100 + int(1000 * seed_spread))
    truth, n = 0.6, 300

    def covers() -> bool:
        table = truth + rng.normal(0, 0.25, n) + rng.normal(0, seed_spread, (seeds, 1)) + rng.normal(0, 0.3, (seeds, n))
        spread = lb.seed_spread([table.mean(axis=1)], [lb.item_residual([table], [1.0])])
        parts = lb.over_seeds(lb.items_parts([table.mean(axis=0)], [1.0]), seeds, spread)
        return lb.combine(float(table.mean()), parts).interval("t").covers(truth)

    assert NOMINAL[0] <= share(covers() for _ in range(1000)) <= NOMINAL[1]


@pytest.mark.parametrize("shift", [0.01, 0.04])
def test_a_row_with_one_seed_covers_with_the_spread_of_other_settings(shift: float) -> None:
    rng = np.random.default_rng(int(1000 * shift))
    truth, n = 0.6, 400

    def table(count: int, easy: np.ndarray) -> np.ndarray:
        return truth + easy + rng.normal(0, shift, (count, 1)) + rng.normal(0, 0.3, (count, n))

    def covers() -> bool:
        easy = rng.normal(0, 0.25, n)
        others = [table(3, easy) for _ in range(3)]
        spread = lb.seed_spread([t.mean(axis=1) for t in others], [lb.item_residual([t], [1.0]) for t in others])
        own = table(1, easy)
        parts = lb.over_seeds(lb.items_parts([own[0]], [1.0]), 1, spread)
        return lb.combine(float(own.mean()), parts).interval("t").covers(truth)

    assert NOMINAL[0] <= share(covers() for _ in range(1000)) <= NOMINAL[1]


def test_differences_of_methods_with_seeds_cover_as_often_as_they_say() -> None:
    """Right or wrong outcomes of two methods with 3 seeds each on the same items; the truth is over items and seeds."""
    rng = np.random.default_rng(21)
    n, seeds, shift, truth = 500, 3, 0.03, 0.05

    def table(level: float, easy: np.ndarray) -> np.ndarray:
        chance = np.clip(level + easy + rng.normal(0, shift, (seeds, 1)), 0, 1)
        return (rng.random((seeds, n)) < chance).astype(float)

    def covers() -> bool:
        easy = rng.uniform(-0.25, 0.25, n)
        a, b = table(0.55, easy), table(0.5, easy)
        spreads = [lb.seed_spread([t.mean(axis=1)], [lb.item_residual([t], [1.0])]) for t in (a, b)]
        parts, noise = lb.seeds_of_difference([(spread, seeds) for spread in spreads])
        found = lb.paired_t([a.mean(axis=0) - b.mean(axis=0)], residual=noise, seeds=parts)
        return found.interval.covers(truth)

    assert NOMINAL[0] <= share(covers() for _ in range(1000)) <= NOMINAL[1]


# --- coverage of single scores and differences


@pytest.mark.parametrize(("n", "p"), [(60, 0.3), (100, 0.55), (200, 0.25), (500, 0.62), (1000, 0.8)])
def test_wilson_intervals_cover_as_often_as_they_say(n: int, p: float) -> None:
    hits = np.random.default_rng(n).binomial(n, p, MANY)
    intervals = {int(k): lb.wilson_interval(int(k), n) for k in np.unique(hits)}
    assert NOMINAL[0] <= share(intervals[int(k)].covers(p) for k in hits) <= NOMINAL[1]


def test_suite_mean_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    sizes, truth = np.array([60, 100, 200, 500]), np.array([0.3, 0.5, 0.65, 0.8])
    p = rng.binomial(sizes, truth, size=(MANY, 4)) / sizes
    variances = p * (1 - p) / (sizes - 1) / 16

    def covers(values: np.ndarray, parts: np.ndarray) -> bool:
        found = lb.combine(float(values.mean()), [lb.Part(v, n - 1) for v, n in zip(parts, sizes, strict=True)])
        return found.interval("t").covers(truth.mean())

    assert NOMINAL[0] <= share(covers(v, s) for v, s in zip(p, variances, strict=True)) <= NOMINAL[1]


@pytest.mark.parametrize("blocks", [4, 8, 16, 64])
def test_perplexity_intervals_cover_as_often_as_they_say(blocks: int) -> None:
    rng = np.random.default_rng(100 + blocks)
    values = 3.0 + losses(rng, (MANY, blocks), 0.2)
    levels, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(blocks)
    found = share(lb.log_t_interval(np.exp(m), np.exp(m) * s, blocks - 1).covers(np.exp(3.0)) for m, s in zip(levels, errors, strict=True))
    assert NOMINAL[0] <= found <= NOMINAL[1]


@pytest.mark.parametrize("blocks", [4, 32])
def test_ratios_of_perplexities_cover_as_often_as_they_say(blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    text = losses(rng, (MANY, blocks), 0.3)
    pruned, dense = 3.4 + text + losses(rng, (MANY, blocks)), 3.0 + text + losses(rng, (MANY, blocks))
    intervals = (lb.exponential(lb.paired_t([a - b]).interval) for a, b in zip(pruned, dense, strict=True))
    assert NOMINAL[0] <= share(i.covers(float(np.exp(0.4))) for i in intervals) <= NOMINAL[1]


def test_intervals_of_paired_suite_differences_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(11)
    shares = np.array([[0.15, 0.7, 0.15], [0.1, 0.7, 0.2]])
    truth = float((shares[:, 2] - shares[:, 0]).mean())

    def covers() -> bool:
        tasks = [rng.choice([-1.0, 0.0, 1.0], size=150, p=p) for p in shares]
        return lb.paired_t(tasks, is_right_or_wrong=True).interval.covers(truth)

    assert NOMINAL[0] <= share(covers() for _ in range(1000)) <= NOMINAL[1]


@pytest.mark.parametrize(("n", "kept"), [(100, 0.3), (200, 0.7), (500, 0.95)])
def test_retention_above_chance_covers_as_often_as_it_says(n: int, kept: float) -> None:
    """Four tasks that the dense model knows on a share of items and guesses on the rest; the pruned one knows `kept` of these."""
    rng = np.random.default_rng(n)
    knows = (0.5, 0.4, 0.3, 0.45)

    def covers() -> bool:
        pruned, dense = [], []
        for chance, known in zip(CHANCES, knows, strict=True):
            has, still = rng.random(n) < known, rng.random(n) < kept
            guess = rng.random((2, n)) < chance
            dense.append(np.where(has, 1.0, guess[0]) - chance)
            pruned.append(np.where(has & still, 1.0, guess[1]) - chance)
        interval = lb.ratio(pruned, dense, [0.25] * 4)[1]
        return interval is not None and interval.covers(kept)

    assert NOMINAL[0] <= share(covers() for _ in range(1000)) <= NOMINAL[1]


def test_retention_of_a_method_with_seeds_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    n, seeds, kept, known, shift = 400, 3, 0.6, 0.5, 0.06

    def covers() -> bool:
        has = rng.random(n) < known
        dense = np.where(has, 1.0, rng.random(n) < 0.25) - 0.25
        still = rng.random((seeds, n)) < kept + rng.normal(0, shift, (seeds, 1))
        table = np.where(has & still, 1.0, rng.random((seeds, n)) < 0.25) - 0.25
        spread = lb.seed_spread([table.mean(axis=1)], [lb.item_residual([table], [1.0])])
        assert spread is not None
        parts = lb.over_seeds([], seeds, spread)
        interval = lb.ratio([table.mean(axis=0)], [dense], [1.0], residual=(spread.residual or 0.0) / seeds, seeds=parts)[1]
        return interval is not None and interval.covers(kept)

    assert NOMINAL[0] <= share(covers() for _ in range(1000)) <= NOMINAL[1]
