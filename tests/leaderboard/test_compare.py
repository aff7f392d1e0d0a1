"""From records to entries, tests, ranks and sentences."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leaderboard_records import put, put_scored, record, suite, task
from scipy import stats

from prunebench.leaderboard import statistics as st
from prunebench.leaderboard.collect import collect
from prunebench.leaderboard.compare import Comparisons, compare
from prunebench.leaderboard.findings import findings
from prunebench.leaderboard.record import ProtocolScore, Record, TaskScore, read_records
from prunebench.leaderboard.samples import contributions

GOOD = [1] * 70 + [0] * 30
BAD = [1] * 40 + [0] * 60
SAME = [1] * 38 + [0] * 60 + [1] * 2


def compared(out: Path) -> tuple[list[Any], Comparisons]:
    entries, _ = collect(read_records(out)[0])
    return entries, compare(entries, out)


def ranks(out: Path) -> dict[str, tuple[int, int] | str]:
    """Of each pruned row its places, or why it has none."""
    entries, found = compared(out)
    places = {}
    for entry in entries:
        where = (entry.id, "suite")
        if not entry.is_dense:
            rank = found.ranks.get(where)
            places[entry.full_label] = (rank.low, rank.high) if rank else found.unranked[where]
    return places


def put_dense(out: Path, outcomes: dict[str, list[int]]) -> None:
    put_scored(out, "dense", outcomes, sparsity=None)


def test_significantly_better_methods_rank_higher_and_ties_share(tmp_path: Path) -> None:
    put_dense(tmp_path, {"a": GOOD, "b": GOOD})
    for method, hits in (("good", GOOD), ("bad", BAD), ("same", SAME)):
        put_scored(tmp_path, method, {"a": hits, "b": hits})
    assert ranks(tmp_path) == {"good": (1, 1), "bad": (2, 3), "same": (2, 3)}


def test_paired_outcomes_give_the_exact_mcnemar_test_of_each_task(tmp_path: Path) -> None:
    put_scored(tmp_path, "a", {"x": GOOD, "y": BAD})
    put_scored(tmp_path, "b", {"x": SAME, "y": BAD})
    _, found = compared(tmp_path)
    (pair,) = found.blocks[0].pairs
    x, y = pair.tasks
    both = np.array(GOOD), np.array(SAME)
    assert (x.a_only, x.b_only) == (int(((both[0] == 1) & (both[1] == 0)).sum()), int(((both[0] == 0) & (both[1] == 1)).sum()))
    assert x.p_value == pytest.approx(stats.binomtest(x.a_only, x.a_only + x.b_only).pvalue, abs=1e-9)
    assert y.p_value == 1.0
    assert pair.result.method == "paired t over items"


def test_items_in_another_order_are_matched_by_their_id(tmp_path: Path) -> None:
    hits = [1, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    put_scored(tmp_path, "a", {"x": hits})
    made = record("b", scores=[suite([task("x", hits)])])
    put(tmp_path, made, {"x": hits[::-1]}, items=[f"i{k}" for k in reversed(range(10))])
    _, found = compared(tmp_path)
    (pair,) = found.blocks[0].pairs
    assert (pair.tasks[0].a_only, pair.tasks[0].b_only) == (0, 0)
    assert pair.result.difference == 0


def test_without_outcomes_the_test_is_unpaired_and_says_so(tmp_path: Path) -> None:
    for method, hits in (("a", GOOD), ("b", BAD)):
        put(tmp_path, record(method, scores=[suite([task("x", hits)])]))
    _, found = compared(tmp_path)
    (pair,) = found.blocks[0].pairs
    assert "unpaired" in pair.result.method
    assert any("missing" in n.text for n in found.notes)
    assert pair.result.p_value == pytest.approx(stats.ttest_ind(GOOD, BAD, equal_var=False).pvalue, rel=1e-6)


def test_seeds_are_pooled_and_widen_the_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seed, p in enumerate((0.4, 0.5, 0.6)):
        put_scored(tmp_path, "a", {"x": [int(v) for v in rng.random(200) < p]}, seed=seed)
    entries, _ = compared(tmp_path)
    (entry,) = entries
    score = entry.suites["suite"].mean
    assert score.seeds == 3
    assert score.value == pytest.approx(np.mean([r.metrics.scores[0].tasks[0].value for r in entry.records]))
    assert score.interval.half_width > st.wilson_interval(100, 200).half_width


def test_a_setting_is_not_averaged_with_another_setting(tmp_path: Path) -> None:
    put_scored(tmp_path, "a", {"x": GOOD}, config={"method_config": {"norm": "l1"}, "seed": 0}, cell_id="one")
    put_scored(tmp_path, "a", {"x": BAD}, config={"method_config": {"norm": "l2"}, "seed": 0}, cell_id="two")
    entries, _ = compared(tmp_path)
    assert sorted(e.label for e in entries) == ["a · norm=l1", "a · norm=l2"]


def test_different_items_are_not_compared(tmp_path: Path) -> None:
    put_scored(tmp_path, "a", {"x": GOOD})
    put_scored(tmp_path, "b", {"x": BAD[:50]})
    _, found = compared(tmp_path)
    assert all(not b.pairs for b in found.blocks)
    assert any("different sets of items" in n.text for n in found.notes)


def test_retention_is_the_share_of_the_dense_score(tmp_path: Path) -> None:
    put_scored(tmp_path, "dense", {"x": GOOD}, sparsity=None)
    put_scored(tmp_path, "a", {"x": BAD})
    entries, found = compared(tmp_path)
    pruned = next(e for e in entries if not e.is_dense)
    share = found.of_dense[(pruned.id, "suite")]
    assert share.value == pytest.approx(4 / 7)
    assert share.interval is not None
    kept = found.kept[(pruned.id, "suite")]  # chance is 0.25
    assert kept.value == pytest.approx(0.15 / 0.45)
    assert kept.tasks == ("x",)


def test_margin_over_chance_and_at_chance(tmp_path: Path) -> None:
    put(tmp_path, record("a", scores=[suite([task("x", BAD, chance=0.38)])]))
    put(tmp_path, record("b", scores=[suite([task("x", GOOD, chance=0.38)])]))
    entries, _ = compared(tmp_path)
    low, high = (e.suites["suite"].mean for e in entries)
    assert low.margin == pytest.approx(0.02)
    assert low.is_at_chance
    assert not high.is_at_chance


def test_a_perplexity_is_compared_as_a_ratio_of_the_same_tokens(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    weights = rng.integers(20, 60, 40).astype(float)
    base = -3.0 * weights + rng.normal(0, 5, 40)
    for method, factor in (("a", 1.0), ("b", 1.1)):
        logs = base * factor + rng.normal(0, 0.3, 40)
        value = math.exp(-logs.sum() / weights.sum())
        one = TaskScore(
            task="text",
            metric="token_perplexity",
            value=value,
            stderr=value * 0.02,
            n=40,
            higher_is_better=False,
            samples_file="samples/p.parquet",
        )
        made = put(tmp_path, record(method, scores=[ProtocolScore(protocol="ppl", tasks=[one])]))
        folder = tmp_path / "cells" / made.run.cell_id / "samples"
        folder.mkdir()
        ids = [f"i{k}" for k in range(40)]
        pq.write_table(pa.table({"item_id": ids, "token_perplexity": logs, "weight": weights}), folder / "p.parquet")
    entries, found = compared(tmp_path)
    (pair,) = found.blocks[0].pairs
    a, b = (e.suites["ppl"].mean.value for e in entries)
    assert pair.is_log
    assert math.exp(pair.result.difference) == pytest.approx(a / b, rel=1e-9)
    assert pair.winner is entries[0]


def test_stratified_outcomes_give_the_recorded_stratified_score() -> None:
    values, strata = np.array([1.0, 1, 0, 0, 0, 1]), ["a", "a", "a", "a", "b", "b"]
    score = TaskScore(task="t", metric="acc", value=0.5 * (0.5 + 0.5), n=6)
    assert contributions(values, np.ones(6), lambda: strata, score) is not None
    uneven = np.array([1.0, 1, 1, 0, 0, 0])
    score = TaskScore(task="t", metric="acc", value=(0.75 + 0.0) / 2, n=6)
    given = contributions(uneven, np.ones(6), lambda: strata, score)
    assert given is not None
    assert given.mean() == pytest.approx(0.375)
    assert contributions(uneven, np.ones(6), lambda: strata, score.model_copy(update={"value": 0.9})) is None


def sentences(out: Path) -> str:
    entries, found = compared(out)
    return " ".join(f"{f.head} {f.body}" for f in findings(entries, found))


def test_a_difference_that_is_noise_makes_no_winner(tmp_path: Path) -> None:
    put_dense(tmp_path, {"x": GOOD})
    put_scored(tmp_path, "a", {"x": BAD})
    put_scored(tmp_path, "b", {"x": [*BAD[:38], 0, 0, *BAD[40:]]})
    text = sentences(tmp_path)
    assert "no method can be told to be better" in text
    assert "could have shown" in text
    assert re.search(r"to tell them apart needs about [\d,]+ items", text)


def test_a_winner_is_named_with_its_interval(tmp_path: Path) -> None:
    put_dense(tmp_path, {"x": GOOD})
    put_scored(tmp_path, "good", {"x": GOOD})
    put_scored(tmp_path, "bad", {"x": BAD})
    text = sentences(tmp_path)
    assert "good is better than bad on suite" in text
    assert "95 % interval" in text
    assert "30.0 points" in text


def test_unfinished_cells_make_a_sentence(tmp_path: Path) -> None:
    put(tmp_path, record("a", status="failed", reason="NaN in the loss at step 3"))
    assert "1 of 1 cell did not finish (failed). m a 20 %: NaN in the loss at step 3." in sentences(tmp_path)


def test_synthetic_and_real_records_never_share_a_column_or_a_rank(tmp_path: Path) -> None:
    put_scored(tmp_path, "a", {"x": GOOD})
    put_scored(tmp_path, "b", {"x": BAD}, synthetic=True)
    entries, found = compared(tmp_path)
    assert [set(e.suites) for e in entries] == [{"suite"}, {"suite (synthetic)"}]
    assert all(not b.pairs for b in found.blocks)


def records_of(task_scores: list[TaskScore], **more: Any) -> Record:
    return record(scores=[ProtocolScore(protocol="p", tasks=task_scores, **more)])


def test_the_two_seven_task_means_are_the_recorded_ones() -> None:
    values = {"boolq": 0.7318, "piqa": 0.7835, "hellaswag": 0.7299, "winogrande": 0.6701, "arc_easy": 0.6745}
    values |= {"arc_challenge": 0.4138, "openbookqa": 0.424}
    tasks = [TaskScore(task=t, metric="acc", value=v, stderr=0.01, n=1000) for t, v in values.items()]
    mean = sum(values.values()) / 7
    entries, notes = collect([records_of(tasks, mean=(mean, 0.004))])
    score = entries[0].suites["p"].mean
    assert score is not None
    assert round(100 * score.value, 2) == 63.25
    assert not notes


def test_a_mean_that_its_tasks_do_not_give_is_noted() -> None:
    tasks = [TaskScore(task=t, metric="acc", value=0.5, stderr=0.01, n=10) for t in "ab"]
    _, notes = collect([records_of(tasks, mean=(0.6, 0.01))])
    assert [n.kind for n in notes] == ["mean"]


def test_a_protocol_without_a_mean_is_shown_task_by_task() -> None:
    tasks = [TaskScore(task=t, metric="token_perplexity", value=9.0, stderr=0.1, n=10, higher_is_better=False) for t in ("wiki", "ptb")]
    entries, _ = collect([records_of(tasks)])
    assert set(entries[0].suites) == {"p: wiki", "p: ptb"}
