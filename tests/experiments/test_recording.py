"""The tokens in a record: counted while pruning and in the recovery, so that the leaderboard can lay its tracks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prunebench.experiments.recording import stage_cost
from prunebench.experiments.results import Counts, Pruned, Recovered, Results, Size, Sliced

DRAWN = [{"purpose": "calibration", "source": "c4"}]
SEEN = {"tokens_seen": [[0, 100.0], [9, 1234.0]], "lm_loss": [[0, 2.0]]}


def cost(name: str, method: str, **found: Any) -> tuple[int | None, int | None]:
    cell: Any = SimpleNamespace(method=method, method_config={}, calibration=SimpleNamespace(num_samples=8, seq_len=16))
    made = stage_cost(name, {"seconds": 1.0}, Results(**found), cell)
    return made.training_tokens, made.calibration_tokens


def pruned(**changes: Any) -> Pruned:
    counts = Counts(total=10, blocks=5)
    told: dict[str, Any] = {"identity": {}, "size": Size(dense=counts, kept=counts), "masks_sha256": "", "curves": {}, "data": ()}
    return Pruned(**{**told, "changed_weights": 0, "unstructured_zeros": None, **changes})


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
    assert cost("prune", method, prune=pruned(**result)) == counted


def test_a_recovery_tells_its_training_tokens_and_other_stages_none() -> None:
    assert cost("recover", "magnitude", recover=Recovered(tokens=299_934, curves={}, disk_bytes=1)) == (299_934, None)
    assert cost("slice", "magnitude", slice=Sliced(disk_bytes=1)) == (None, None)
    assert cost("evaluate", "magnitude") == (None, None)
