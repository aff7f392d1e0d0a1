"""Published numbers: converted without loss, marked as verified or recalled, matched only with what is alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from leaderboard_records import put, record

from prunebench.leaderboard import ledger
from prunebench.leaderboard.collect import Entry, collect
from prunebench.leaderboard.compare import compare
from prunebench.leaderboard.published.convert import convert
from prunebench.leaderboard.record import ProtocolScore, Record, StageCost, TaskScore, read_records, write_record

NUMBERS, MATCHING = ledger.load()
LLAMA = "yahma/llama-7b-hf"


def line_of(out: Path, **wanted: Any) -> ledger.Line:
    entries, _ = collect(read_records(out)[0])
    comparisons = compare(entries, out)
    lines = ledger.compare_published(entries, comparisons, NUMBERS, MATCHING)
    found = [x for x in lines if all(getattr(x.published, k) == v for k, v in wanted.items())]
    assert len(found) == 1
    return found[0]


def put_boolq(out: Path, value: float, *, method: str = "dense", n: int = 3270, **about: Any) -> None:
    hits = round(value * n)
    stderr = (value * (1 - value) / (n - 1)) ** 0.5
    one = TaskScore(task="boolq", metric="acc", value=hits / n, stderr=stderr, n=n)
    scores = [ProtocolScore(protocol="commonsense_llm_pruner", tasks=[one])]
    put(out, record(method, scores=scores, **{"sparsity": None, "model": LLAMA, "cell_id": "c", **about}))


DENSE = {"table_id": "llmpruner_llama7b_20", "model": "LLaMA-7B", "method": "dense", "quantity": "boolq"}


def test_the_averages_of_the_papers_follow_from_their_task_scores() -> None:
    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    for n in NUMBERS:
        if n.unit == "%" and n.protocol and n.verified and n.metric in ("acc", "acc_norm", "mean of tasks"):
            key = (n.table_id, n.model, n.method, n.sparsity, n.finetuned, n.params_kept)
            rows.setdefault(key, {})[n.quantity] = n.value
    whole = [r for r in rows.values() if "mean" in r and len(r) == 8]
    assert len(whole) > 30
    close = [abs(r["mean"] - sum(v for k, v in r.items() if k != "mean") / 7) < 0.02 for r in whole]
    assert sum(close) >= len(close) - 2  # known misprints


def test_recalled_numbers_stay_off_the_page() -> None:
    lines = ledger.compare_published([], compare([], Path()), NUMBERS, MATCHING)
    assert all(line.published.verified for line in lines)
    recalled = [n for n in NUMBERS if not n.verified]
    assert recalled
    assert len(lines) + len(recalled) == len(NUMBERS)


def test_every_number_says_paper_table_source_model_and_counting_rule() -> None:
    for n in NUMBERS:
        assert all((n.paper, n.table, n.source, n.model, n.method, n.counting, n.unit))


def test_a_number_inside_our_interval_is_reproduced(tmp_path: Path) -> None:
    put_boolq(tmp_path, 0.735)
    line = line_of(tmp_path, **DENSE)
    assert line.verdict == "reproduced"
    assert line.published.value == 73.18


def test_a_number_outside_our_interval_differs_by_so_much(tmp_path: Path) -> None:
    put_boolq(tmp_path, 0.65)
    line = line_of(tmp_path, **DENSE)
    assert line.verdict == "differs"
    assert line.why.startswith("by -8.1")


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"model": "other"}, "no record of LLaMA-7B"),
        ({"method": "random", "sparsity": 0.2}, "no finished record of dense"),
        ({"status": "failed"}, "no finished record of dense"),
        ({"synthetic": True}, "no record of LLaMA-7B"),
    ],
)
def test_what_was_not_run_says_why(tmp_path: Path, about: dict[str, Any], why: str) -> None:
    put_boolq(tmp_path, 0.73, **about)
    line = line_of(tmp_path, **DENSE)
    assert (line.verdict, line.measured) == ("not run", None)
    assert why in line.why


def test_another_counting_rule_or_recovery_is_not_the_same_setting(tmp_path: Path) -> None:
    put_boolq(tmp_path, 0.6, method="random", sparsity=0.2, basis="blocks")
    wanted = {**DENSE, "method": "random"}
    assert "counting rule" in line_of(tmp_path, **wanted).why
    put_boolq(tmp_path, 0.6, method="random", sparsity=0.2, recovery="lora")
    assert "without fine-tuning" in line_of(tmp_path, **wanted).why


def line_for(out: Path, records: list[Record], **wanted: Any) -> ledger.Line:
    for made in records:
        write_record(out, made)
    return line_of(out, **wanted)


def scored(method: str, values: dict[str, float], n: int = 20_000, **about: Any) -> Record:
    """A cell of LLaMA-7B with the suite of LLM-Pruner: shares of n items of each task."""
    tasks = [
        TaskScore(task=name, metric="acc", value=round(v * n) / n, stderr=(v * (1 - v) / (n - 1)) ** 0.5, n=n, chance=0.25)
        for name, v in values.items()
    ]
    mean = sum(t.value for t in tasks) / len(tasks)
    suite = ProtocolScore(protocol="commonsense_llm_pruner", tasks=tasks, mean=(mean, 0.001))  # type: ignore[arg-type]
    return record(method, scores=[suite], model=LLAMA, **about)


CLAIM = {"table_id": "nuteprune_abstract", "quantity": "retention", "sparsity": 0.2}
TRAINS = {"stages": [StageCost(name="prune", training_tokens=1000)], "basis": "blocks"}


@pytest.mark.parametrize(("kept", "verdict"), [(0.98, "met"), (1.02, "met"), (0.9717, "met"), (0.93, "not met"), (0.9517, "undecided")])
def test_a_claim_of_at_least_97_17_per_cent_is_met_by_98_and_not_by_93(tmp_path: Path, kept: float, verdict: str) -> None:
    dense = {"boolq": 0.70, "piqa": 0.60}
    records = [scored("dense", dense, sparsity=None), scored("nuteprune", {t: kept * v for t, v in dense.items()}, **TRAINS)]
    line = line_for(tmp_path, records, **CLAIM)
    assert (line.verdict, line.published.relation) == (verdict, "at least")
    assert "margin 2 points" in line.why


def test_a_claim_needs_the_share_of_the_dense_model(tmp_path: Path) -> None:
    assert line_for(tmp_path, [scored("nuteprune", {"boolq": 0.7}, **TRAINS)], **CLAIM).measured is None


def test_a_method_that_fine_tunes_inside_itself_counts_as_fine_tuned(tmp_path: Path) -> None:
    untrained = {**TRAINS, "stages": [StageCost(name="prune", training_tokens=0)]}
    line = line_for(tmp_path, [scored("nuteprune", {"boolq": 0.7}, **untrained)], **CLAIM)
    assert line.why == "not run with fine-tuning"


ROWS = {"table_id": "slimllm_llama7b", "method": "LLM-Pruner", "sparsity": 0.2, "finetuned": False, "quantity": "mean"}


def variant(importance: str | None, **about: Any) -> Record:
    config = {"method_config": {"strategy": "block", "importance": importance}} if importance else {}
    return scored(
        "llm_pruner", {"boolq": 0.5682}, config=config, **{"sparsity": 0.2, "basis": "blocks", "cell_id": str(importance), **about}
    )


def test_flap_and_slimllm_quote_two_variants_of_llm_pruner() -> None:
    flap, slim = (MATCHING["tables"][t]["LLM-Pruner"]["settings"] for t in ("flap_zeroshot", "slimllm_llama7b"))
    means = {
        n.table_id: n.value for n in NUMBERS if n.quantity == "mean" and n.method == "LLM-Pruner" and n.sparsity == 0.2 and not n.finetuned
    }
    original = {n.method: n.value for n in NUMBERS if n.table_id == "llmpruner_llama7b_20" and n.quantity == "mean" and not n.finetuned}
    assert (flap["importance"], means["flap_zeroshot"]) == ("second", original["LLM-Pruner block, element^2"])
    assert (slim["importance"], means["slimllm_llama7b"]) == ("first", original["LLM-Pruner block, element^1"])


@pytest.mark.parametrize(("importance", "compared"), [("second", True), ("first", False), ("vector", False), (None, False)])
def test_variants_are_matched_and_not_names(tmp_path: Path, importance: str | None, compared: bool) -> None:
    line = line_for(tmp_path, [variant(importance)], **{**ROWS, "table_id": "flap_zeroshot"})
    assert (line.measured is not None) == compared
    if not compared:
        assert "not run in the paper's variant (strategy block, importance second)" in line.why


def test_a_counting_rule_that_was_not_established_matches_nothing(tmp_path: Path) -> None:
    for basis in ("total", "blocks"):
        line = line_for(tmp_path, [variant("first", basis=basis)], **ROWS)
        assert (line.verdict, line.measured) == ("not comparable", None)
        assert "not established" in line.why


def test_an_excerpt_is_no_opened_source(tmp_path: Path) -> None:
    line = line_for(tmp_path, [variant("first", basis="total")], table_id="llmpruner_repro_issue34", quantity="wikitext2_?")
    assert (line.verdict, line.published.seen) == ("not comparable", "search excerpt")
    lines = ledger.compare_published([], compare([], Path()), NUMBERS, MATCHING)
    excerpts = sum(x.published.seen == "search excerpt" for x in lines)
    assert excerpts > 0
    note = ledger.note(lines, 0)
    assert note.startswith(f"{len(lines) - excerpts} numbers seen in an opened source")
    assert f"{excerpts} more were seen in a search excerpt only" in note


def test_how_a_number_was_seen_and_inferred_metrics_are_shown() -> None:
    lines = ledger.compare_published([], compare([], Path()), NUMBERS, MATCHING)
    rows = ledger.table(lines).rows
    assert {row["seen"].text for row in rows} == {"figure", "text", "abstract", "run log", "search excerpt"}
    inferred = [row for row, x in zip(rows, lines, strict=True) if x.published.table_id == "flap_zeroshot"]
    assert inferred
    assert all("metrics inferred" in row["quantity"].sub for row in inferred)
    assert {row["published"].text for row in rows if row["table"].text == "nuteprune_abstract"} == {"≥ 97.17", "≥ 95.07"}


@pytest.mark.parametrize(("n", "verdict"), [(20_000, "reproduced"), (500, "undecided")])
def test_a_wide_interval_that_holds_the_number_reproduces_nothing(tmp_path: Path, n: int, verdict: str) -> None:
    put_boolq(tmp_path, 0.735, n=n)
    assert line_of(tmp_path, **DENSE).verdict == verdict


def test_a_limited_run_is_not_compared(tmp_path: Path) -> None:
    entries = _limited(tmp_path)
    lines = ledger.compare_published(entries, compare(entries, tmp_path), NUMBERS, MATCHING)
    assert all(line.measured is None for line in lines)


def _limited(out: Path) -> list[Entry]:
    put_boolq(out, 0.73)
    records, _ = read_records(out)
    records[0].metrics.scores[0].extra["limit"] = 60
    return collect(records)[0]


def test_published_and_measured_are_two_columns() -> None:
    number = NUMBERS[0]
    table = ledger.table([ledger.Line(number, None, "not run", "why")])
    assert table.rows[0]["published"].text == f"{number.value:g}"
    assert table.rows[0]["measured"].text == "–"


def test_converting_keeps_every_number() -> None:
    row = {"model": "M", "method": "dense", "pruned": 0.0, "finetuned": False, "confidence": "verified"}
    row |= {"tasks": {"boolq": 1.5, "storycloze_2018": 2.5}, "average": 2.0, "wikitext2_ppl": 7.0, "mmlu_5shot": 3.0}
    table = {"id": "t", "paper": "p", "table": "x", "source": "memory", "confidence": "recalled", "ppl": "128 tokens", "rows": [row]}
    (made,) = convert({"tables": [table]})["p"]
    numbers = {(n["protocol"], n["quantity"]): n["value"] for n in made["rows"][0]["numbers"]}
    assert numbers == {
        ("commonsense_compresso", "boolq"): 1.5,
        ("commonsense_compresso", "storycloze_2018"): 2.5,
        ("commonsense_compresso", "mean"): 2.0,
        ("perplexity_128", "wikitext2_128"): 7.0,
        ("mmlu_generative", "mean"): 3.0,
    }
    assert made["rows"][0]["verified"] is False


def test_lines_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NUMBERS[0].value = 1.0  # type: ignore[misc]
