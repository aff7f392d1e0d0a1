"""The tokens in a record: counted while pruning and in the recovery, so that the leaderboard can lay its tracks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prunebench.experiments.recording import stage_cost

DRAWN = [{"purpose": "calibration", "source": "c4"}]
SEEN = {"tokens_seen": [[0, 100.0], [9, 1234.0]], "lm_loss": [[0, 2.0]]}


def cost(name: str, method: str, result: dict[str, Any]) -> tuple[int | None, int | None]:
    cell = SimpleNamespace(method=method, method_config={}, calibration=SimpleNamespace(num_samples=8, seq_len=16))
    made = stage_cost(name, {"cost": {"seconds": 1.0, "tokens": result.get("tokens")}, "result": result}, cell)  # type: ignore[arg-type]
    return made.training_tokens, made.calibration_tokens


@pytest.mark.parametrize(
    ("method", "result", "counted"),
    [
        ("magnitude", {}, (0, 0)),
        ("flap", {"data": DRAWN}, (0, 128)),
        ("compresso", {"curves": SEEN, "data": DRAWN}, (1234, 128)),
        ("nuteprune", {"curves": SEEN}, (1234, 0)),
        ("compresso", {"curves": {}}, (None, 0)),  # it trains, and nobody counted
    ],
)
def test_pruning_tells_its_training_and_calibration_tokens(
    method: str, result: dict[str, Any], counted: tuple[int | None, int | None]
) -> None:
    assert cost("prune", method, result) == counted


def test_a_recovery_tells_its_training_tokens_and_other_stages_none() -> None:
    assert cost("recover", "magnitude", {"tokens": 299_934}) == (299_934, None)
    assert cost("slice", "magnitude", {}) == (None, None)
    assert cost("evaluate", "magnitude", {}) == (None, None)
