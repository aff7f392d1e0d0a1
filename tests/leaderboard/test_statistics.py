"""Statistics against scipy and against hand-worked cases; what they promise on average is in test_simulations.py."""

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


def test_t_interval_is_the_t_quantile_times_the_standard_error() -> None:
    found = lb.t_interval(0.5, 0.1, 7)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 7, loc=0.5, scale=0.1), abs=EXACT)
    assert lb.t_interval(0.5, 0.1, math.inf).high == pytest.approx(0.5 + 1.959963984540054 * 0.1, abs=EXACT)


def test_a_perplexity_of_four_blocks_has_the_t_interval_of_its_mean_loss() -> None:
    losses = np.array([2.9, 3.1, 3.0, 3.4])
    value = math.exp(losses.mean())
    stderr = value * losses.std(ddof=1) / 2
    found = lb.log_t_interval(value, stderr, 3)
    expected = stats.t.interval(0.95, 3, loc=losses.mean(), scale=stats.sem(losses))
    assert (math.log(found.low), math.log(found.high)) == pytest.approx(expected, abs=EXACT)
    assert found.high / value == pytest.approx(value / found.low, abs=EXACT)


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


@pytest.mark.parametrize("n", [4, 8, 80])
def test_paired_t_of_one_task_is_the_textbook_test(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.1, 1, n), rng.normal(0, 1, n)
    found = lb.paired_t([a - b])
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.interval.low == pytest.approx(expected.confidence_interval().low, abs=EXACT)
    assert (found.degrees_of_freedom, found.n) == (pytest.approx(n - 1), n)


def test_paired_t_of_two_tasks_is_welchs_test_of_their_sum() -> None:
    # half of x and half of minus y: the difference of two independent means, halved
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.3, 1, 12), rng.normal(0, 2, 30)
    found = lb.paired_t([x, -y])
    expected = stats.ttest_ind(x, y, equal_var=False)
    assert found.difference == pytest.approx((x.mean() - y.mean()) / 2, abs=EXACT)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(expected.df, rel=1e-9)


def test_paired_t_weighs_tasks_as_the_protocol_does() -> None:
    tasks = [np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 1, -1])]
    assert lb.paired_t(tasks).difference == pytest.approx(0.375, abs=EXACT)
    assert lb.paired_t(tasks, [0.1, 0.9]).difference == pytest.approx(0.075, abs=EXACT)


def test_paired_t_with_seeds_and_equal_items_is_welchs_test_over_seeds() -> None:
    a, b = [0.50, 0.52, 0.56], [0.40, 0.47, 0.42, 0.44]
    seeds = [lb.Part(float(np.var(v, ddof=1)) / len(v), len(v) - 1) for v in (a, b)]
    found = lb.paired_t([np.full(100, np.mean(a) - np.mean(b))], seeds=seeds)
    assert found.p_value == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)


@pytest.mark.parametrize(("a_only", "b_only", "n"), [(4, 0, 10_000), (5, 0, 10_000), (6, 0, 500), (12, 3, 1000), (9, 1, 200)])
def test_few_items_that_tell_two_models_apart_give_about_the_exact_p(a_only: int, b_only: int, n: int) -> None:
    """The plain paired t says 0.045 for 4 of 10,000 items, all in one direction; exactly it is 0.125."""
    differences = np.zeros(n)
    differences[:a_only], differences[a_only : a_only + b_only] = 1, -1
    found = lb.paired_t([differences], is_right_or_wrong=True)
    assert found.p_value == pytest.approx(lb.mcnemar_exact(a_only, b_only), rel=0.35)
    assert found.difference == pytest.approx((a_only - b_only) / n, abs=EXACT)


def test_bonett_and_prices_variance_worked_by_hand() -> None:
    # 8 items, 3 for a and 1 for b; one pseudo-item each way: n 10, sum of squares 6, sum 2: (6 - 0.4) / 9 / 10
    items = np.array([1.0, 1, 1, -1, 0, 0, 0, 0])
    part = lb.paired_part(items, 1.0, 2.0)
    assert part.variance == pytest.approx((6 - 0.4) / 9 / 10, abs=EXACT)
    assert lb.paired_part(items, 0.5, 2.0).variance == pytest.approx(part.variance / 4, abs=EXACT)


def test_identical_outcomes_are_no_difference() -> None:
    found = lb.paired_t([np.zeros(50)], is_right_or_wrong=True)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.interval.low < 0 < found.interval.high
    assert lb.paired_t([np.zeros(10)]).p_value == 1.0


def test_items_that_all_differ_by_the_same_have_no_spread_and_the_sign_tests_p() -> None:
    assert lb.paired_t([np.full(4, 0.3)]).p_value == pytest.approx(2 / 2**4, abs=EXACT)
    assert lb.paired_t([np.full(40, 0.3)]).p_value < 1e-9


def test_one_item_of_a_task_is_no_paired_test() -> None:
    with pytest.raises(ValueError, match="two items"):
        lb.paired_t([np.zeros(5), np.ones(1)])


def test_no_p_value_has_a_floor_that_a_correction_could_lift() -> None:
    rng = np.random.default_rng(4)
    differences = [rng.normal(1, 0.5, 200)]
    assert lb.paired_t(differences).p_value * 100_000 < 0.05
    assert lb.paired_t([np.ones(300)], is_right_or_wrong=True).p_value * 100_000 < 0.05


def test_unpaired_t_is_welchs_test() -> None:
    a, b = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.2, 0.0, 0.1, 0.15, 0.05])
    parts = [[lb.Part(float(v.var(ddof=1)) / len(v), len(v) - 1)] for v in (a, b)]
    found = lb.unpaired_t(float(a.mean()), parts[0], float(b.mean()), parts[1])
    assert found.p_value == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)


def test_above_chance_is_a_one_sided_binomial_test() -> None:
    assert lb.above_chance(60, 100, 0.5) == pytest.approx(stats.binomtest(60, 100, 0.5, alternative="greater").pvalue, rel=1e-9)
    assert lb.above_chance(0, 10, 0.25) == 1.0
    assert lb.above_level(0.6, 0.05, 9, 0.5) == pytest.approx(stats.t.sf(2, 9), rel=1e-9)


# --- seeds


def test_seed_spread_is_pooled_within_settings() -> None:
    # settings of 2 and 3 seeds: squares 2 and 2 about their own means, 1 + 2 degrees of freedom; the single seed tells nothing
    found = lb.seed_spread([[1.0, 3.0], [5.0, 6.0, 7.0], [100.0]], [None, None, None])
    assert found is not None
    assert (found.part.variance, found.part.degrees_of_freedom, found.settings) == (pytest.approx(4 / 3), 3, 2)
    assert lb.seed_spread([[1.0], [2.0]], [None, None]) is None


def test_over_seeds_of_one_way_data_is_the_t_interval_over_seeds() -> None:
    values = [0.4, 0.5, 0.45]
    found = lb.combine(float(np.mean(values)), lb.over_seeds([lb.Part(0.0, 99)], 3, lb.seed_spread([values], [None])))
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    interval = found.interval("t")
    assert (interval.low, interval.high) == pytest.approx(expected, abs=EXACT)


def test_items_and_seeds_equal_a_hand_worked_two_way_table() -> None:
    # items 1, 0.5, 0; seeds 0.5 each plus a shift: mean squares worked by hand
    table = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    of_items = np.var([1, 0.5, 0], ddof=1) / 3  # 0.25 / 3
    of_seeds = np.var([2 / 3, 1 / 3], ddof=1) / 2  # 1/36
    residual = table - np.array([1, 0.5, 0])[None] - np.array([[2 / 3], [1 / 3]]) + 0.5
    of_residual = (residual**2).sum() / 2 / 3  # mean square with 1 x 2 degrees of freedom, over 3 items
    assert lb.item_residual([table], [1.0]) == pytest.approx(of_residual, abs=EXACT)
    spread = lb.seed_spread([table.mean(axis=1)], [of_residual])
    parts = lb.over_seeds(lb.items_parts([table.mean(axis=0)], [1.0]), 2, spread)
    assert lb.combine(0.5, parts).stderr == pytest.approx(math.sqrt(of_items - of_residual / 2 + of_seeds), abs=EXACT)


def test_rows_that_share_a_measured_spread_share_its_degrees_of_freedom() -> None:
    one, other = (lb.seed_spread([[1.0, 3.0], [5.0, 6.0]], [0.1, 0.1]) for _ in range(2))
    parts, noise = lb.seeds_of_difference([(one, 1), (one, 2)])
    assert parts == [lb.Part(1.25 * 1.5, 2)]
    assert noise == pytest.approx(0.15)
    assert [p.degrees_of_freedom for p in lb.seeds_of_difference([(one, 1), (other, 1), (None, 1)])[0]] == [2, 2]


def test_satterthwaites_degrees_of_freedom_worked_by_hand() -> None:
    # variances 4 and 1 with 10 and 2 degrees of freedom: 25 / (16/10 + 1/2)
    assert lb.combine(0.0, [lb.Part(4, 10), lb.Part(1, 2)]).degrees_of_freedom == pytest.approx(25 / 2.1, abs=EXACT)


# --- ranks, power, ratios


def test_rank_ranges_count_those_better_and_those_worse() -> None:
    # 0 beats 2 and 3; 1 beats 3: nobody is better than 0 and 1, but 1 may still be third
    found = [(r.low, r.high) for r in lb.rank_ranges(4, [(0, 2), (0, 3), (1, 3)])]
    assert found == [(1, 2), (1, 3), (2, 4), (3, 4)]
    assert [(r.low, r.high) for r in lb.rank_ranges(3, [])] == [(1, 3)] * 3
    assert [(r.low, r.high) for r in lb.rank_ranges(3, [(0, 1), (0, 2), (1, 2)])] == [(1, 1), (2, 2), (3, 3)]


def test_detectable_differences_use_the_quantiles_of_the_test() -> None:
    least = lb.minimum_detectable_difference(0.02)
    assert least == pytest.approx((1.959963984540054 + 0.8416212335729143) * 0.02, abs=EXACT)
    few = lb.minimum_detectable_difference(0.02, 3, tests=136)
    assert few == pytest.approx((stats.t.ppf(1 - 0.05 / 272, 3) + stats.t.ppf(0.8, 3)) * 0.02, rel=1e-6)
    assert few > 3 * lb.minimum_detectable_difference(0.02, tests=136)


@pytest.mark.parametrize(("degrees", "tests"), [(3, 1), (7, 10), (199, 136)])
def test_detectable_differences_are_found_four_times_in_five(degrees: int, tests: int) -> None:
    least = lb.minimum_detectable_difference(1.0, degrees, tests=tests)
    power = stats.nct.sf(stats.t.ppf(1 - 0.05 / (2 * tests), degrees), degrees, least)
    assert power == pytest.approx(0.8, abs=0.06)


def test_fiellers_interval_worked_by_hand() -> None:
    # top 2, bottom 4, variances 0.04 and 0.04, no covariance, quantile 2: (16 - 0.16) r^2 - 16 r + (4 - 0.16) = 0
    found = lb.fieller(2, 4, 0.04, 0.04, 0.0, 2.0)
    assert found is not None
    roots = np.roots([15.84, -16, 3.84])
    assert (found.low, found.high) == pytest.approx((roots.min(), roots.max()), abs=EXACT)
    assert lb.fieller(1, 1, 0.04, 1.0, 0.0, 2.0) is None


def test_the_ends_of_fiellers_interval_are_where_the_paired_test_gives_5_per_cent() -> None:
    rng = np.random.default_rng(8)
    dense = rng.normal(2, 1, 200)
    pruned = 0.7 * dense + rng.normal(0, 0.5, 200)
    share, interval = lb.ratio([pruned], [dense], [1.0])
    assert interval is not None
    assert interval.low < share < interval.high
    for end in (interval.low, interval.high):
        assert stats.ttest_1samp(pruned - end * dense, 0).pvalue == pytest.approx(0.05, abs=1e-6)


def test_a_model_keeps_all_of_itself() -> None:
    right = np.array([1.0, 0, 1, 1, 1, 0, 1, 1])
    share, interval = lb.ratio([right - 0.25], [right - 0.25], [1.0])
    assert share == 1.0
    assert interval is not None
    assert interval.half_width == pytest.approx(0, abs=1e-6)


def test_pareto_front_keeps_what_nothing_beats() -> None:
    assert lb.pareto_front([3, 1, 2, 2], [9, 5, 4, 7]) == [1, 3, 0]
    assert lb.pareto_front([], []) == []
