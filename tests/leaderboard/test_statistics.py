"""Statistics against scipy, against hand-worked cases, and against what they promise (simulated coverage)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from prunebench.leaderboard import statistics as lb

EXACT = 1e-9


def test_wilson_interval_equals_the_closed_form() -> None:
    n, k, z = 57, 23, stats.norm.ppf(0.975)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    found = lb.wilson_interval(k, n)
    assert found.low == pytest.approx(centre - half, abs=EXACT)
    assert found.high == pytest.approx(centre + half, abs=EXACT)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 1)])
def test_wilson_interval_stays_inside_0_and_1(k: int, n: int) -> None:
    found = lb.wilson_interval(k, n)
    assert 0 <= found.low <= k / n <= found.high <= 1


def test_normal_interval_is_1_96_standard_errors() -> None:
    found = lb.normal_interval(0.5, 0.1)
    assert found.low == pytest.approx(0.5 - 1.959963984540054 * 0.1, abs=EXACT)
    assert found.high == pytest.approx(0.5 + 1.959963984540054 * 0.1, abs=EXACT)


def test_log_normal_interval_is_symmetric_in_ratio() -> None:
    found = lb.log_normal_interval(20.0, 1.0)
    assert found.high / 20 == pytest.approx(20 / found.low, abs=EXACT)
    assert math.log(found.high) == pytest.approx(math.log(20) + 1.959963984540054 / 20, abs=EXACT)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 5), (3, 12), (20, 1), (40, 61)])
def test_mcnemar_equals_a_sum_of_binomial_terms(a: int, b: int) -> None:
    n = a + b
    by_hand = min(1.0, 2 * sum(math.comb(n, i) for i in range(min(a, b) + 1)) / 2**n)
    assert lb.mcnemar_exact(a, b) == pytest.approx(by_hand, abs=EXACT)


def test_mcnemar_counts_discordant_items() -> None:
    a, b = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 0, 0])
    assert lb.mcnemar_of(a, b)[:2] == (3, 1)
    assert lb.mcnemar_of(a, b)[2] == pytest.approx(stats.binomtest(3, 4, 0.5).pvalue, abs=EXACT)


def test_holm_equals_a_hand_worked_case() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, made monotone: 0.02, 0.03, 0.06, 0.06
    assert lb.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=EXACT)
    assert lb.holm([]) == []


def test_holm_is_capped_at_1() -> None:
    assert lb.holm([0.9, 0.8]) == [1.0, 1.0]


def test_benjamini_hochberg_equals_scipy_and_a_hand_worked_case() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert lb.benjamini_hochberg(p) == pytest.approx(list(stats.false_discovery_control(p)), abs=EXACT)
    assert lb.benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02], abs=EXACT)
    assert lb.benjamini_hochberg([]) == []


def test_paired_bootstrap_agrees_with_the_paired_t_test_on_large_samples() -> None:
    rng = np.random.default_rng(1)
    tasks = [rng.integers(-1, 2, size=n) + rng.normal(0.05, 0.01) for n in (400, 900)]
    found = lb.paired_bootstrap(tasks, seed=3)
    assert found.difference == pytest.approx(np.mean([t.mean() for t in tasks]), abs=EXACT)
    assert found.stderr == pytest.approx(math.sqrt(sum(t.var(ddof=1) / len(t) for t in tasks)) / 2, abs=EXACT)
    expected = 2 * stats.norm.sf(abs(found.difference) / found.stderr)
    assert found.p_value == pytest.approx(expected, abs=0.02)
    assert found.interval.low == pytest.approx(found.difference - 1.96 * found.stderr, abs=0.1 * found.stderr)


def test_paired_bootstrap_draws_the_same_distribution_with_and_without_the_multinomial_short_cut() -> None:
    rng = np.random.default_rng(0)
    few = rng.choice([-1.0, 0.0, 1.0], size=300, p=[0.2, 0.6, 0.2])
    many = few + rng.uniform(-1e-9, 1e-9, size=300)  # all distinct: drawn item by item
    short, long = (lb.paired_bootstrap([d], seed=5) for d in (few, many))
    assert short.interval.low == pytest.approx(long.interval.low, abs=0.004)
    assert short.interval.high == pytest.approx(long.interval.high, abs=0.004)


def test_paired_bootstrap_weighs_tasks_as_the_protocol_does() -> None:
    tasks = [np.ones(10), np.zeros(90)]
    assert lb.paired_bootstrap(tasks).difference == pytest.approx(0.5, abs=EXACT)
    assert lb.paired_bootstrap(tasks, [0.1, 0.9]).difference == pytest.approx(0.1, abs=EXACT)


def test_paired_bootstrap_is_reproducible_and_never_gives_p_zero() -> None:
    differences = [np.ones(50)]
    assert lb.paired_bootstrap(differences, seed=1) == lb.paired_bootstrap(differences, seed=1)
    assert lb.paired_bootstrap(differences).p_value > 0
    assert lb.paired_bootstrap([np.zeros(50)]).p_value == 1.0


def test_paired_t_without_seeds_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.1, 1, 80), rng.normal(0, 1, 80)
    found = lb.paired_t([a - b], None, [0.0], [0.0])
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, abs=EXACT)
    assert found.interval.low == pytest.approx(expected.confidence_interval().low, abs=EXACT)


def test_paired_t_with_equal_items_is_welchs_test_over_seeds() -> None:
    a, b = [0.50, 0.52, 0.56], [0.40, 0.47, 0.42, 0.44]
    same_items = [np.full(100, np.mean(a) - np.mean(b))]
    found = lb.paired_t(same_items, None, a, b)
    assert found.p_value == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, abs=EXACT)


def test_unpaired_z_equals_the_closed_form() -> None:
    found = lb.unpaired_z(0.6, 0.02, 0.5, 0.03)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.1 / math.hypot(0.02, 0.03)), abs=EXACT)


def test_identical_outcomes_are_no_difference() -> None:
    assert lb.paired_t([np.zeros(10)], None, [0.5], [0.5]).p_value == 1.0


def test_seed_mean_of_one_way_data_is_the_t_interval_over_seeds() -> None:
    values = [0.4, 0.5, 0.45]
    found = lb.seed_mean(values, [0.0, 0.0, 0.0], 100)
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.interval().low, found.interval().high) == pytest.approx(expected, abs=EXACT)


def test_seed_mean_from_outcomes_equals_a_hand_worked_two_way_table() -> None:
    # documents 1, 0.5, 0; seeds 0.5 each plus a shift: mean squares worked by hand
    table = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found = lb.seed_mean_from_outcomes(table)
    of_documents = np.var([1, 0.5, 0], ddof=1) / 3  # 0.25 / 3
    of_seeds = np.var([2 / 3, 1 / 3], ddof=1) / 2  # 1/36
    residual = table - np.array([1, 0.5, 0])[None] - np.array([[2 / 3], [1 / 3]]) + 0.5
    of_residual = (residual**2).sum() / 2 / 6
    assert found.value == pytest.approx(0.5, abs=EXACT)
    assert found.stderr == pytest.approx(math.sqrt(of_documents - of_residual + of_seeds), abs=EXACT)


def test_shared_ranks_count_significantly_better_methods() -> None:
    # 0 beats 2 and 3; 1 beats 3: 0 and 1 share first place, 2 has one better, 3 has two
    assert lb.shared_ranks(4, [(0, 2), (0, 3), (1, 3)]) == [1, 1, 2, 3]
    assert lb.shared_ranks(3, []) == [1, 1, 1]


def test_minimum_detectable_difference_has_the_stated_power() -> None:
    least = lb.minimum_detectable_difference(0.02)
    assert least == pytest.approx((1.959963984540054 + 0.8416212335729143) * 0.02, abs=EXACT)
    power = stats.norm.sf(1.959963984540054 - least / 0.02)
    assert power == pytest.approx(0.8, abs=1e-3)
    assert lb.minimum_detectable_difference(0.02, tests=10) > least


def test_retention_by_the_delta_method() -> None:
    share, error = lb.retention(0.5, 0.6, 0.02, 0.02)
    assert share == pytest.approx(5 / 6, abs=EXACT)
    assert error == pytest.approx(5 / 6 * math.sqrt((0.02 / 0.5) ** 2 + (0.02 / 0.6) ** 2), abs=EXACT)
    assert lb.retention(0.6, 0.6, 0.02, 0.02, 0.0004)[1] == pytest.approx(0, abs=1e-7)


def test_pareto_front_keeps_what_nothing_beats() -> None:
    assert lb.pareto_front([3, 1, 2, 2], [9, 5, 4, 7]) == [1, 3, 0]
    assert lb.pareto_front([], []) == []


SIMULATIONS = 2000
NOMINAL = (0.93, 0.97)


@pytest.mark.parametrize(("n", "p"), [(60, 0.3), (100, 0.55), (200, 0.25), (500, 0.62), (1000, 0.8)])
def test_wilson_intervals_cover_as_often_as_they_say(n: int, p: float) -> None:
    hits = np.random.default_rng(n).binomial(n, p, SIMULATIONS)
    intervals = {int(k): lb.wilson_interval(int(k), n) for k in np.unique(hits)}
    covered = np.mean([intervals[int(k)].covers(p) for k in hits])
    assert NOMINAL[0] <= covered <= NOMINAL[1]


def test_suite_mean_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    sizes, truth = np.array([60, 100, 200, 500]), np.array([0.3, 0.5, 0.65, 0.8])
    p = rng.binomial(sizes, truth, size=(SIMULATIONS, 4)) / sizes
    stderr = np.sqrt((p * (1 - p) / (sizes - 1)).sum(axis=1)) / 4
    covered = np.mean([lb.normal_interval(m, s).covers(truth.mean()) for m, s in zip(p.mean(axis=1), stderr, strict=True)])
    assert NOMINAL[0] <= covered <= NOMINAL[1]


@pytest.mark.parametrize(("seeds", "seed_spread"), [(3, 0.02), (5, 0.05), (5, 0.01)])
def test_intervals_over_documents_and_seeds_cover_as_often_as_they_say(seeds: int, seed_spread: float) -> None:
    """New documents and new seeds in every simulation; the truth is the mean over both."""
    rng = np.random.default_rng(seeds * 100 + int(1000 * seed_spread))
    truth, documents, inside = 0.6, 300, 0
    for _ in range(1000):
        easy = rng.normal(0, 0.25, documents)
        shift = rng.normal(0, seed_spread, seeds)
        table = truth + easy[None, :] + shift[:, None] + rng.normal(0, 0.3, (seeds, documents))
        inside += lb.seed_mean_from_outcomes(table).interval().covers(truth)
    assert NOMINAL[0] <= inside / 1000 <= NOMINAL[1]


def test_bootstrap_intervals_of_paired_differences_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(11)
    shares = np.array([[0.15, 0.7, 0.15], [0.1, 0.7, 0.2]])
    truth = float((shares[:, 2] - shares[:, 0]).mean())
    inside = 0
    for i in range(800):
        tasks = [rng.choice([-1, 0, 1], size=150, p=share) for share in shares]
        inside += lb.paired_bootstrap(tasks, seed=i, draws=1000).interval.covers(truth)
    assert NOMINAL[0] <= inside / 800 <= NOMINAL[1]


def test_the_corrected_tests_hold_their_family_wise_level_when_nothing_differs() -> None:
    rng = np.random.default_rng(13)
    false_alarms = 0
    for _ in range(400):
        a, b, c = (rng.binomial(1, 0.5, 120) for _ in range(3))
        p = [lb.mcnemar_of(x, y)[2] for x, y in ((a, b), (a, c), (b, c))]
        false_alarms += min(lb.holm(p)) < 0.05
    assert false_alarms / 400 <= 0.05
