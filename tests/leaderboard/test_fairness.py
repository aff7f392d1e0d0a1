"""What the rows of a race have in common is read from their records, and what differs is named with who has what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leaderboard_records import put_scored

from prunebench.leaderboard import build_report
from prunebench.leaderboard.collect import collect
from prunebench.leaderboard.compare import compare
from prunebench.leaderboard.fairness import Fairness, fairness
from prunebench.leaderboard.record import StageCost, read_records, write_record

HITS = [1, 0, 1, 1, 0, 1, 0, 1] * 10
C4 = "c4, 128 samples of 128 tokens"


def put(
    out: Path,
    method: str,
    *,
    text: str = "alpaca",
    calibration: str = C4,
    tokens: int = 300_000,
    recovery: str = "none",
    weights: str = "abcdef0123",
    **about: Any,
) -> None:
    """A row that trained on `text`: in its recovery, whose text its provenance tells, or inside, by its settings."""
    inside = {"method_config": {"text": {"source": text}}} if recovery == "none" and tokens else {}
    config = {"calibration": {"source": "c4"}, "model": {"dtype": "float32"}, **inside}
    stages = [StageCost(name="prune", training_tokens=0 if recovery != "none" else tokens)]
    stages += [StageCost(name="recover", training_tokens=tokens)] if recovery != "none" else []
    made = put_scored(out, method, {"x": HITS}, config=config, stages=stages, recovery=recovery, **about)
    made.provenance.model = {"sha256": weights}
    made.provenance.data = [{"purpose": "calibration", "source": calibration}] if calibration else []
    if recovery != "none":
        made.provenance.data.append({"purpose": "recovery", "source": f"{text} (a file)"})
    write_record(out, made)


def found(out: Path) -> dict[str, Fairness]:
    entries, _ = collect(read_records(out)[0])
    return {block.track: fairness(block, entries) for block in compare(entries, out).blocks}


def test_what_is_equal_over_all_rows_is_told_with_its_value(tmp_path: Path) -> None:
    put(tmp_path, "compresso")
    put(tmp_path, "nuteprune")
    (race,) = found(tmp_path).values()
    assert not race.different
    assert race.sentence == (
        "Equal for all 2 rows: model (m, float32, weights abcdef01), training text (alpaca), training tokens (300,000), "
        f"calibration samples ({C4}), recovery (none), evaluation items (the same 80), seeds (0)."
    )


def test_what_differs_is_named_with_who_has_what(tmp_path: Path) -> None:
    """Methods that train inside beside recovered ones: the same tokens, another text for one, another recovery."""
    put(tmp_path, "compresso")
    put(tmp_path, "nuteprune", text="c4", tokens=301_500)
    for method in ("llm_pruner", "flap"):
        put(tmp_path, method, recovery="lora")
    (race,) = found(tmp_path).values()
    told = {fact.what: fact.words for fact in race.different}
    assert told == {
        "training text": "training text: alpaca (compresso, flap + lora, llm_pruner + lora); c4 (nuteprune)",
        "training tokens": "training tokens: 300,000 (compresso, flap + lora, llm_pruner + lora); 301,500 (nuteprune)",
        "recovery": "recovery: none (compresso, nuteprune); lora (flap + lora, llm_pruner + lora)",
    }
    assert "evaluation items (the same 80)" in race.sentence


def test_other_weights_samples_and_seeds_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b", weights="999", calibration="c4, 32 samples of 128 tokens", seed=1)
    (race,) = found(tmp_path).values()
    assert {fact.what for fact in race.different} == {"model", "calibration samples", "seeds"}
    assert "seeds: 0 (a); 1 (b)" in race.sentence


def test_what_was_not_recorded_is_not_called_equal(tmp_path: Path) -> None:
    for method in "ab":
        made = put_scored(tmp_path, method, {"x": HITS}, stages=[StageCost(name="prune", training_tokens=5)])
        assert not made.provenance.data
    (race,) = found(tmp_path).values()
    assert "Not recorded: training text." in race.sentence
    assert "Not recorded: calibration samples." in race.sentence
    assert "training text (not recorded)" not in race.sentence


def test_methods_of_other_tracks_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b")
    put(tmp_path, "late", tokens=400_000)
    put(tmp_path, "plain", tokens=0)
    races = found(tmp_path)
    assert "Not in this race: plain (no training); late (400 k training tokens)." in races["300 k training tokens"].sentence


def test_the_page_tells_it_below_the_table(tmp_path: Path) -> None:
    put(tmp_path, "a", text="c4")
    put(tmp_path, "b")
    text = build_report(tmp_path).read_text()
    told = text[text.index('id="fairness"') : text.index("</ul>", text.index('id="fairness"'))]
    assert "With 20 % of all parameters removed and 300 k training tokens, suite." in told
    assert "Different training text: c4 (a); alpaca (b)." in told
    assert "Every method had the same" not in text
