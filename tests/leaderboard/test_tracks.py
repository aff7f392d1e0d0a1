"""Training tokens, counted over pruning and recovery, and the tracks that they make."""

from __future__ import annotations

from typing import Any

import pytest
from leaderboard_records import record, suite, task

from prunebench.leaderboard.collect import collect
from prunebench.leaderboard.record import Record, StageCost
from prunebench.leaderboard.tracks import (
    NO_TRAINING,
    NOT_RECORDED,
    calibration_tokens,
    depends_on_seed,
    label_tokens,
    tracks,
    training_tokens,
)


def made(method: str = "m", stages: list[dict[str, Any]] = (), curves: dict[str, float] | None = None, **run: Any) -> Record:  # type: ignore[assignment]
    found = record(method, scores=[suite([task("x", [1, 0, 1, 1])])], stages=[StageCost(**stage) for stage in stages], **run)
    found.metrics.curves = {name: [(0.0, 1.0), (1.0, last)] for name, last in (curves or {}).items()}
    return found


def test_tokens_of_pruning_and_recovery_are_counted_together() -> None:
    stages = [
        {"name": "prune", "training_tokens": 200_000, "label_tokens": 150_000, "calibration_tokens": 4096},
        {"name": "recover", "training_tokens": 100_000, "label_tokens": 60_000},
        {"name": "evaluate"},
    ]
    found = made(stages=stages, recovery="lora")
    assert (training_tokens(found), label_tokens(found), calibration_tokens(found)) == (300_000, 210_000, 4096)


@pytest.mark.parametrize(
    ("stages", "curves", "recovery", "tokens"),
    [
        ([{"name": "prune"}], {}, "none", 0),  # no curve: it did not train
        ([{"name": "prune"}], {"prune: tokens_seen": 283_300, "prune: lm_loss": 2.0}, "none", 283_300),
        ([{"name": "prune"}, {"name": "recover", "tokens": 299_934}], {"recover: loss": 1.0}, "lora", 299_934),
        ([{"name": "prune"}, {"name": "recover", "tokens": 100}], {"prune: tokens_seen": 200}, "lora", 300),
        ([{"name": "prune"}], {"prune: loss": 2.0}, "none", None),  # it trained, and nobody counted
        ([{"name": "prune"}, {"name": "recover"}], {}, "lora", None),
        ([{"name": "prune"}], {}, "lora", None),
        ([], {}, "none", 0),
    ],
)
def test_records_that_did_not_count_tell_by_their_curves(
    stages: list[dict[str, Any]], curves: dict[str, float], recovery: str, tokens: int | None
) -> None:
    assert training_tokens(made(stages=stages, curves=curves, recovery=recovery)) == tokens


def test_label_tokens_are_told_only_if_every_training_stage_tells_them() -> None:
    stages = [{"name": "prune", "training_tokens": 0}, {"name": "recover", "training_tokens": 9, "label_tokens": 5}]
    assert label_tokens(made(stages=stages, recovery="lora")) == 5
    stages[0]["training_tokens"] = 3
    assert label_tokens(made(stages=stages, recovery="lora")) is None


def test_calibration_tokens_of_older_records_are_samples_times_length() -> None:
    found = made(config={"calibration": {"num_samples": 128, "seq_len": 64}})
    assert calibration_tokens(found) is None  # nothing says that any was drawn
    found.provenance.data = [{"purpose": "calibration", "source": "c4"}]
    assert calibration_tokens(found) == 128 * 64


def test_a_method_that_trains_hangs_on_its_seed_and_a_record_may_say_otherwise() -> None:
    trains = [{"name": "prune", "training_tokens": 5}]
    assert depends_on_seed(made(stages=trains))
    assert depends_on_seed(made("random"))
    assert not depends_on_seed(made("magnitude"))
    assert depends_on_seed(made("magnitude", depends_on_seed=True))
    assert not depends_on_seed(made(stages=trains, depends_on_seed=False))


def test_a_track_holds_what_lies_within_5_per_cent() -> None:
    found = tracks([0, 300_000, 315_000, 315_001, None, 270_000], "abcdef")
    assert found[0] == NO_TRAINING
    assert found[4] == NOT_RECORDED
    assert found[1] == found[2] != found[3]
    assert found[5] not in (found[1], found[3])
    assert len(set(found)) == 5


def test_windows_are_laid_so_that_most_methods_meet() -> None:
    # a window from 100 on would part the three methods at 104, 107 and 108, and it holds more rows
    found = tracks([100, 104, 108, 107, 100, 100, 100], ["a", "b", "c", "d", "a", "a", "a"])
    assert found[1] == found[2] == found[3]
    assert found[0] == found[4] != found[1]


def test_tracks_are_named_with_as_few_digits_as_tell_them_apart() -> None:
    assert tracks([299_934, 299_000], "ab") == ["299 k training tokens"] * 2
    assert tracks([1_000_000_000, 2_000_000_000], "ab") == ["1 B training tokens", "2 B training tokens"]
    near = tracks([100_000, 105_100, 110_500], "abc")
    assert len(set(near)) == 3


def test_methods_with_equal_tokens_meet_wherever_they_spend_them() -> None:
    inside = [{"name": "prune", "training_tokens": 300_000}]
    after = [{"name": "prune", "training_tokens": 0}, {"name": "recover", "training_tokens": 299_934}]
    records = [
        made("compresso", inside),
        made("nuteprune", [{"name": "prune", "training_tokens": 301_000}]),
        made("llm_pruner", after, recovery="lora"),
        made("flap", after, recovery="lora"),
        made("flap", [{"name": "prune", "training_tokens": 0}]),
    ]
    entries, _ = collect(records)
    races = {e.full_label: e.race for e in entries}
    assert len({races[name] for name in ("compresso", "nuteprune", "llm_pruner + lora", "flap + lora")}) == 1
    assert races["flap"] != races["compresso"]


def test_tracks_are_the_same_at_every_sparsity() -> None:
    tokens = {0.2: 300_000, 0.5: 305_000}
    entries, _ = collect([made("a", [{"name": "prune", "training_tokens": t}], sparsity=s) for s, t in tokens.items()])
    assert len({e.track for e in entries}) == 1
