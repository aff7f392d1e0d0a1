"""Races as a whole: few blocks, few seeds, ablations, tasks that the dense model can't do, and who may be called better."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leaderboard_records import TRAINED, put_losses, put_scored, record, suite, task
from scipy import stats

from prunebench.leaderboard.collect import Entry, collect
from prunebench.leaderboard.compare import ONE_SEED, Comparisons, Pair, compare
from prunebench.leaderboard.findings import findings
from prunebench.leaderboard.pairs import verdict
from prunebench.leaderboard.record import ProtocolScore, TaskScore, read_records

BASE = np.array([2.1, 2.6, 2.3, 2.9, 2.4, 2.2, 2.8, 2.5])
"""Mean losses of eight blocks of text."""
NOISE = np.array([0.01, -0.02, 0.015, -0.005, 0.0, 0.02, -0.01, -0.01])


def compared(out: Path) -> tuple[dict[str, Entry], Comparisons]:
    entries, notes = collect(read_records(out)[0])
    found = compare(entries, out)
    found.notes = [*notes, *found.notes]
    return {e.full_label: e for e in entries}, found


def pair_of(found: Comparisons, a: str, b: str) -> Pair:
    (pair,) = [p for block in found.blocks for p in block.every_pair if {p.a.full_label, p.b.full_label} == {a, b}]
    return pair


def sentences(out: Path) -> str:
    entries, _ = collect(read_records(out)[0])
    return " ".join(f"{f.head} {f.body}" for f in findings(entries, compare(entries, out)))


def hits(share: float, n: int = 200, shift: int = 0) -> list[int]:
    """The first share of n items right, the pattern moved on by `shift` items."""
    return [int((i + shift) % n < share * n) for i in range(n)]


# --- few blocks


def test_four_blocks_that_all_point_one_way_are_tested_with_three_degrees_of_freedom(tmp_path: Path) -> None:
    """A percentile bootstrap gives its smallest p here, 2 / 10001, whatever the four differences are."""
    gaps = np.array([0.02, 0.05, 0.001, 0.03])
    put_losses(tmp_path, "a", BASE[:4])
    put_losses(tmp_path, "b", BASE[:4] + gaps)
    entries, found = compared(tmp_path)
    result = pair_of(found, "a", "b").result
    expected = stats.ttest_1samp(-gaps, 0)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert (result.degrees_of_freedom, result.n) == (pytest.approx(3), 4)
    assert result.p_value > 0.05
    interval = entries["a"].suites["ppl"].mean.interval
    assert math.log(interval.high) == pytest.approx(stats.t.interval(0.95, 3, BASE[:4].mean(), stats.sem(BASE[:4]))[1], rel=1e-9)


def test_a_single_block_gives_no_interval_and_no_test(tmp_path: Path) -> None:
    put_losses(tmp_path, "a", [2.0])
    put_losses(tmp_path, "b", [3.0])
    entries, found = compared(tmp_path)
    assert entries["a"].suites["ppl"].mean.interval is None
    assert all(not block.pairs for block in found.blocks)
    assert set(found.unranked.values()) == {"no standard error was recorded"}


# --- seeds


def put_seeds(out: Path, method: str, levels: list[float], **about: Any) -> None:
    for seed, level in enumerate(levels):
        put_losses(out, method, BASE + level + np.roll(NOISE, seed), seed=seed, stages=TRAINED, **about)


def test_one_seed_of_a_method_that_trains_is_a_checkpoint_and_wins_nothing(tmp_path: Path) -> None:
    put_seeds(tmp_path, "trained", [0.0])
    put_losses(tmp_path, "tuned", BASE + 0.5, stages=TRAINED, depends_on_seed=False)
    entries, found = compared(tmp_path)
    pair = pair_of(found, "trained", "tuned")
    assert pair.ahead is entries["trained"]
    assert pair.winner is None
    assert "this checkpoint ahead, one seed" in verdict(pair)
    assert found.unranked[(entries["trained"].id, "ppl")] == ONE_SEED
    text = sentences(tmp_path)
    assert "is better than" not in text
    assert "As checkpoints, trained is a factor of 1.65 ahead of tuned" in text


def test_with_several_seeds_it_may_win(tmp_path: Path) -> None:
    put_seeds(tmp_path, "trained", [0.0, 0.02, -0.02])
    put_losses(tmp_path, "tuned", BASE + 0.5, stages=TRAINED, depends_on_seed=False)
    entries, found = compared(tmp_path)
    assert pair_of(found, "trained", "tuned").winner is entries["trained"]
    assert found.ranks[(entries["trained"].id, "ppl")].low == 1


def test_the_spread_of_seeds_is_taken_from_other_rows_of_the_method(tmp_path: Path) -> None:
    put_seeds(tmp_path, "trained", [0.0, 0.1, -0.1], sparsity=0.5)
    put_seeds(tmp_path, "trained", [0.05], sparsity=0.2)
    put_losses(tmp_path, "tuned", BASE + 0.15, sparsity=0.2, stages=TRAINED, depends_on_seed=False)
    entries, _ = collect(read_records(tmp_path)[0])
    found = compare(entries, tmp_path)
    row = next(e for e in entries if e.method == "trained" and e.sparsity == 0.2)
    spread = row.suites["ppl"].mean.spread
    assert (spread.settings, spread.part.degrees_of_freedom) == (1, 2)
    pair = pair_of(found, "trained", "tuned")
    assert pair.one_seed == ()
    assert pair.winner is None  # 0.1 apart, seeds spread by 0.1
    assert pair.result.degrees_of_freedom < 4


def test_a_row_with_more_seeds_never_looks_less_certain_than_one_with_a_single_seed(tmp_path: Path) -> None:
    for i, levels in enumerate(([0.0], [0.0, 0.2], [0.1, -0.1, 0.0, 0.15])):
        for seed, level in enumerate(levels):
            about = {"config": {"method_config": {"rate": i}, "seed": seed}, "cell_id": f"m{i}-{seed}"}
            put_losses(tmp_path, "m", BASE + level + np.roll(NOISE, seed), seed=seed, stages=TRAINED, **about)
    entries, _ = collect(read_records(tmp_path)[0])
    compare(entries, tmp_path)
    rows = sorted((e for e in entries if e.method == "m"), key=lambda e: len(e.done))
    errors = [math.log(e.suites["ppl"].mean.interval.high / e.suites["ppl"].mean.value) for e in rows]
    assert errors == sorted(errors, reverse=True)


def test_seeds_of_a_perplexity_are_averaged_geometrically_with_a_t_interval(tmp_path: Path) -> None:
    put_seeds(tmp_path, "m", [0.0, 0.3, 0.6])
    entries, _ = compared(tmp_path)
    score = entries["m"].suites["ppl"].mean
    assert score.value == pytest.approx(math.exp(np.mean([BASE.mean() + s for s in (0.0, 0.3, 0.6)])), rel=1e-9)
    assert score.interval.high / score.value == pytest.approx(score.value / score.interval.low, rel=1e-9)
    items, seeds = BASE.var(ddof=1) / 8, 0.09 / 3  # the noise of single blocks is small beside both
    degrees = (items + seeds) ** 2 / (items**2 / 7 + seeds**2 / 2)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(items + seeds)
    assert math.log(score.interval.high / score.value) == pytest.approx(half, rel=0.02)


def test_a_seed_that_was_scored_twice_counts_once_and_is_named(tmp_path: Path) -> None:
    put_losses(tmp_path, "m", BASE, seed=0)
    put_losses(tmp_path, "m", BASE + 0.1, seed=0, cell_id="again")
    entries, found = compared(tmp_path)
    assert entries["m"].suites["ppl"].mean.seeds == 1
    assert any(n.kind == "duplicate" and "2 records of 1 seed" in n.text for n in found.notes)


# --- families


def put_settings(out: Path, method: str, shares: list[float], **about: Any) -> None:
    for i, share in enumerate(shares):
        config = {"method_config": {"rate": i, "ramp": "linear"}}
        put_scored(out, method, {"x": hits(share, shift=7 * i)}, config=config, cell_id=f"{method}{i}", **about)


def test_ablations_do_not_enlarge_the_family_that_compares_methods(tmp_path: Path) -> None:
    for method, share in (("a", 0.7), ("b", 0.5)):
        put_scored(tmp_path, method, {"x": hits(share)})
    alone = pair_of(compared(tmp_path)[1], "a", "b").holm_p
    put_settings(tmp_path, "c", [0.4 + 0.01 * i for i in range(20)])
    _, found = compared(tmp_path)
    (block,) = found.blocks
    assert (len(block.entries), len(block.ablations)) == (3, 19)
    assert [len(block.pairs), len(block.ablation_pairs)] == [3, 19]
    pair = pair_of(found, "a", "b")
    assert pair.family.size == 3
    assert pair.holm_p <= 3 * alone + 1e-12
    assert {p.family.kind for p in block.ablation_pairs} == {"ablations"}
    assert "all pairs of methods" in pair.family.words


def test_the_main_setting_is_the_one_with_most_seeds_and_never_the_best(tmp_path: Path) -> None:
    for rate, share, seeds in ((1, 0.9, 1), (2, 0.5, 2), (3, 0.8, 1)):
        for seed in range(seeds):
            config = {"method_config": {"rate": rate}, "seed": seed}
            put_scored(tmp_path, "m", {"x": hits(share, shift=seed)}, seed=seed, config=config, cell_id=f"{rate}-{seed}")
    _, found = compared(tmp_path)
    assert [e.variant for e in found.blocks[0].entries] == ["rate=2"]


def test_among_equals_the_main_setting_is_the_one_that_the_others_change(tmp_path: Path) -> None:
    plain = {"rate": 1, "ramp": "linear", "text": "c4"}
    for i, change in enumerate(({"rate": 2}, {"ramp": "cubic"}, {}, {"text": "self"})):
        put_scored(tmp_path, "m", {"x": hits(0.5 + 0.1 * i)}, config={"method_config": plain | change}, cell_id=str(i))
    _, found = compared(tmp_path)
    assert [e.full_label for e in found.blocks[0].entries] == ["m"]
    assert sorted(e.variant for e in found.blocks[0].ablations) == ["ramp=cubic", "rate=2", "text=self"]


def test_families_of_hundreds_of_pairs_can_be_significant(tmp_path: Path) -> None:
    """With a bootstrap of 10,000 draws no family over 250 pairs could be."""
    for i in range(24):
        put_scored(tmp_path, f"m{i:02d}", {"x": hits(0.25 + 0.03 * i, 400)})
    put_scored(tmp_path, "dense", {"x": hits(0.97, 400)}, sparsity=None)
    _, found = compared(tmp_path)
    assert len(found.blocks[0].pairs) == 276
    assert pair_of(found, "m00", "m23").holm_p < 1e-6
    assert pair_of(found, "m00", "m23").winner is not None


# --- what the dense model can do


TASKS = {"can": (0.25, 0.7), "guesses": (0.62, 0.42)}
"""Chance and the dense model's share: on the second task it is below guessing, as SmolLM2 is on BoolQ."""


def put_two(out: Path, method: str, can: float, guesses: float, shift: int = 0, **about: Any) -> None:
    from leaderboard_records import put

    outcomes = {"can": hits(can, shift=shift), "guesses": hits(guesses, shift=shift)}
    tasks = [task(name, outcomes[name], chance=TASKS[name][0]) for name in TASKS]
    put(out, record(method, scores=[suite(tasks)], **about), dict(outcomes))


def test_retention_leaves_out_the_tasks_on_which_the_dense_model_guesses(tmp_path: Path) -> None:
    put_two(tmp_path, "dense", *(share for _, share in TASKS.values()), sparsity=None)
    put_two(tmp_path, "a", 0.52, 0.61)
    entries, found = compared(tmp_path)
    kept = found.kept[(entries["a"].id, "suite")]
    assert kept.tasks == ("can",)
    assert kept.value == pytest.approx((0.52 - 0.25) / (0.7 - 0.25))
    assert kept.interval is not None
    assert kept.interval.low < kept.value < kept.interval.high
    assert found.of_dense[(entries["a"].id, "suite")].value == pytest.approx((0.52 + 0.61) / (0.7 + 0.42))  # '101 % of dense'
    text = sentences(tmp_path)
    assert "The dense model is at chance on guesses of suite. guesses (42.0, chance 62.0)" in text
    assert "a keeps 60 % [" in text


def test_a_difference_on_tasks_that_the_dense_model_can_not_do_is_no_win(tmp_path: Path) -> None:
    put_two(tmp_path, "dense", 0.7, 0.42, sparsity=None)
    put_two(tmp_path, "a", 0.5, 0.62)
    put_two(tmp_path, "b", 0.5, 0.3)
    entries, found = compared(tmp_path)
    pair = pair_of(found, "a", "b")
    assert pair.ahead is entries["a"]
    assert pair.winner is None
    assert "not on the tasks that the dense model can do" in verdict(pair)
    assert found.ranks[(entries["a"].id, "suite")] == found.ranks[(entries["b"].id, "suite")]
    assert "It is not there on the tasks that the dense model can do" in sentences(tmp_path)


def test_a_difference_that_is_there_on_the_tasks_of_the_dense_model_too_is_a_win(tmp_path: Path) -> None:
    put_two(tmp_path, "dense", 0.7, 0.42, sparsity=None)
    put_two(tmp_path, "a", 0.6, 0.62)
    put_two(tmp_path, "b", 0.4, 0.5)
    entries, found = compared(tmp_path)
    assert pair_of(found, "a", "b").winner is entries["a"]


@pytest.mark.parametrize(
    ("dense", "why"),
    [
        (None, "no dense model was scored on the same items"),
        (0.25, "the dense model is at chance on every task"),
    ],
)
def test_without_a_dense_model_above_chance_there_is_no_rank(tmp_path: Path, dense: float | None, why: str) -> None:
    if dense is not None:
        put_scored(tmp_path, "dense", {"x": hits(dense)}, sparsity=None)
    put_scored(tmp_path, "a", {"x": hits(0.7)})
    put_scored(tmp_path, "b", {"x": hits(0.5)})
    entries, found = compared(tmp_path)
    assert found.unranked[(entries["a"].id, "suite")] == why
    assert "is better than" not in sentences(tmp_path)


def test_without_a_competitor_there_is_no_rank(tmp_path: Path) -> None:
    put_scored(tmp_path, "dense", {"x": hits(0.8)}, sparsity=None)
    put_scored(tmp_path, "a", {"x": hits(0.7)})
    put_scored(tmp_path, "b", {"x": hits(0.7, 100)})
    _, found = compared(tmp_path)
    assert not found.ranks
    assert set(found.unranked.values()) == {"nothing on the same items to compare with"}


def test_collapsed_models_are_never_called_better(tmp_path: Path) -> None:
    """'random is better than magnitude' at perplexities of 3621 and 10548."""
    put_losses(tmp_path, "dense", BASE, sparsity=None)
    put_losses(tmp_path, "good", BASE + 0.3)
    put_losses(tmp_path, "lost", BASE + 5.0)
    put_losses(tmp_path, "gone", BASE + 6.0 + NOISE)
    entries, found = compared(tmp_path)
    assert found.collapsed == {(entries["lost"].id, "ppl"), (entries["gone"].id, "ppl")}
    assert pair_of(found, "lost", "gone").winner is None
    assert verdict(pair_of(found, "lost", "gone")) == "both collapsed"
    assert pair_of(found, "good", "gone").winner is entries["good"]
    assert "2 of 3 pruned settings collapsed" in sentences(tmp_path)
    assert "lost is better" not in sentences(tmp_path)


def test_guessing_on_every_task_is_collapsed_too(tmp_path: Path) -> None:
    put_scored(tmp_path, "dense", {"x": hits(0.8), "y": hits(0.8)}, sparsity=None)
    put_scored(tmp_path, "a", {"x": hits(0.27), "y": hits(0.22)})
    put_scored(tmp_path, "b", {"x": hits(0.27), "y": hits(0.5)})
    entries, found = compared(tmp_path)
    assert found.collapsed == {(entries["a"].id, "suite")}


def test_of_dense_of_a_perplexity_has_the_interval_of_the_paired_blocks(tmp_path: Path) -> None:
    put_losses(tmp_path, "dense", BASE, sparsity=None)
    put_losses(tmp_path, "a", BASE + 0.4 + NOISE)
    entries, found = compared(tmp_path)
    kept = found.of_dense[(entries["a"].id, "ppl")]
    low, high = stats.t.interval(0.95, 7, 0.4 + NOISE.mean(), stats.sem(NOISE))
    assert kept.value == pytest.approx(math.exp(0.4 + NOISE.mean()), rel=1e-9)
    assert (kept.interval.low, kept.interval.high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-6)


# --- notes and names


@pytest.mark.parametrize("sparsity", [-0.2, math.inf, -math.inf, math.nan, 1.0, 20.0])
def test_a_sparsity_that_is_no_share_is_named_and_compared_with_nothing(tmp_path: Path, sparsity: float) -> None:
    put_scored(tmp_path, "a", {"x": hits(0.5)}, sparsity=sparsity)
    put_scored(tmp_path, "b", {"x": hits(0.9)}, sparsity=sparsity)
    entries, found = compared(tmp_path)
    assert not found.blocks
    assert sum(n.kind == "sparsity" and f"has sparsity {sparsity:g}" in n.text for n in found.notes) == 2
    assert not any(e.is_dense for e in entries.values())


def test_a_missing_sparsity_is_named_and_is_no_dense_model(tmp_path: Path) -> None:
    put_scored(tmp_path, "magnitude", {"x": hits(0.9)}, sparsity=None)
    put_scored(tmp_path, "a", {"x": hits(0.5)})
    entries, found = compared(tmp_path)
    assert not entries["magnitude"].is_dense
    assert not found.of_dense
    assert any(n.kind == "sparsity" and "magnitude" in n.text and "has no sparsity" in n.text for n in found.notes)


def test_a_dense_model_with_a_sparsity_is_named_and_no_reference(tmp_path: Path) -> None:
    put_scored(tmp_path, "dense", {"x": hits(0.9)}, sparsity=0.5)
    put_scored(tmp_path, "a", {"x": hits(0.5)})
    _, found = compared(tmp_path)
    assert not found.of_dense
    assert any("is called dense, but has sparsity 0.5" in n.text for n in found.notes)


def test_what_a_run_set_aside_is_named(tmp_path: Path) -> None:
    made = record("a", scores=[suite([task("x", hits(0.5))])])
    made.provenance.extra["set_aside"] = ["masks.safetensors was damaged; set aside and made again."]
    _, notes = collect([made])
    assert [n.text for n in notes if n.kind == "set aside"] == [
        "m a 20 %, cell a-0.2-0-m-none: masks.safetensors was damaged; set aside and made again."
    ]


def test_scores_on_other_numbers_of_items_are_columns_of_their_own(tmp_path: Path) -> None:
    put_losses(tmp_path, "a", BASE)
    put_losses(tmp_path, "b", BASE[:4])
    entries, _ = compared(tmp_path)
    assert (list(entries["a"].suites), list(entries["b"].suites)) == (["ppl, 8 items"], ["ppl, 4 items"])


def test_one_setting_scored_on_several_protocols_is_one_row() -> None:
    one = record("a", scores=[suite([task("x", hits(0.5))])], config={"protocols": ["suite"], "rate": 1}, cell_id="1")
    text = TaskScore(task="text", metric="token_perplexity", value=9.0, stderr=0.1, n=8, higher_is_better=False)
    other = record("a", scores=[ProtocolScore(protocol="ppl", tasks=[text])], config={"protocols": ["ppl"], "rate": 1}, cell_id="2")
    entries, notes = collect([one, other])
    assert [sorted(e.suites) for e in entries] == [["ppl", "suite"]]
    assert not notes


def test_no_two_rows_of_a_race_share_a_name() -> None:
    long = "x" * 100
    records = [record("a", config={"method_config": {"text": long + str(i), "b": i % 2}}, cell_id=str(i)) for i in range(4)]
    entries, _ = collect(records)
    assert len({e.full_label for e in entries}) == 4


def test_rows_of_two_tracks_that_differ_in_one_setting_are_told_apart_by_it() -> None:
    settings = [{"method_config": {"steps": steps}} for steps in (9, 0)]
    entries, _ = collect([record("a", stages=TRAINED, cell_id="1", config=settings[0]), record("a", cell_id="2", config=settings[1])])
    assert {e.title for e in entries} == {"m a · steps=9 20 %", "m a · steps=0 20 %"}


def test_a_name_is_cut_at_whole_settings_and_says_how_many_more_there_are() -> None:
    records = [record("a", config={"method_config": {f"setting_{k}": i for k in "abcdef"}}, cell_id=str(i)) for i in range(2)]
    entries, _ = collect(records)
    assert [e.variant for e in entries] == ["setting_a=0, setting_b=0, setting_c=0, +3", "setting_a=1, setting_b=1, setting_c=1, +3"]


def test_the_settings_of_the_method_name_a_row_and_others_only_where_these_do_not_tell() -> None:
    both = [{"method_config": {"rate": i}, "calibration": {"num_samples": i}} for i in (1, 2)]
    entries, _ = collect([record("a", config=config, cell_id=str(i)) for i, config in enumerate(both)])
    assert [e.variant for e in entries] == ["rate=1", "rate=2"]
    entries, _ = collect([record("a", config={"calibration": config["calibration"]}, cell_id=str(i)) for i, config in enumerate(both)])
    assert [e.variant for e in entries] == ["num_samples=1", "num_samples=2"]


def test_a_row_of_another_track_tells_its_track_in_the_title() -> None:
    entries, _ = collect([record("a", stages=TRAINED, cell_id="1", config=dict.fromkeys("bcde", 9)), record("a", cell_id="2")])
    assert {e.title for e in entries} == {"m a 20 %, no training", "m a 20 %, 300 k training tokens"}
