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
from prunebench.leaderboard.record import ProtocolScore, TaskScore, read_records

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
