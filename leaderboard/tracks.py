"""Training tokens of a record, and the tracks of a race: no training, or the same number of training tokens.

Where a method spends its tokens (while it prunes, or in a recovery after it) makes no difference: they are counted together.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Sequence

from prunebench.leaderboard.record import Record, StageCost

NO_TRAINING = "no training"
NOT_RECORDED = "training tokens not recorded"
TOLERANCE = 0.05
"""Of one track the largest number of tokens is at most so much above the smallest."""
SEEN = "tokens_seen"
"""The curve in which methods that train while they prune log their running count of tokens."""
DRAWN_AT_RANDOM = ("random",)
"""Methods without training that hang on their seed, for records that don't say so."""


def training_tokens(record: Record) -> int | None:
    """Tokens that pruning and recovery trained on together; None where that is not known.

    Records from before the stages counted them: a recovery's tokens are its training tokens, those of pruning are the last
    point of its curve of tokens seen, and a method that logged no curve at all did not train.
    """
    if record.run.method == "dense" and record.run.recovery == "none":
        return 0
    stages = [stage for stage in record.run.stages if stage.name in ("prune", "recover")]
    if record.run.recovery != "none" and not any(stage.name == "recover" for stage in stages):
        return None
    counts = [_of_stage(record, stage) for stage in stages] or [_from_curves(record, "prune")]
    return None if any(count is None for count in counts) else sum(count or 0 for count in counts)


def _of_stage(record: Record, stage: StageCost) -> int | None:
    if stage.training_tokens is not None:
        return stage.training_tokens
    return stage.tokens if stage.name == "recover" else _from_curves(record, stage.name)


def _from_curves(record: Record, stage: str) -> int | None:
    curves = record.metrics.curves
    seen = [y for _, y in curves.get(f"{stage}: {SEEN}", []) if math.isfinite(y)]
    if seen:
        return round(seen[-1])
    return None if any(name.startswith(f"{stage}: ") for name in curves) else 0


def label_tokens(record: Record) -> int | None:
    """Training tokens that carried a loss; None unless every stage that trained says so."""
    stages = [stage for stage in record.run.stages if stage.name in ("prune", "recover") and stage.training_tokens != 0]
    counts = [stage.label_tokens for stage in stages]
    return sum(count or 0 for count in counts) if counts and all(count is not None for count in counts) else None


def calibration_tokens(record: Record) -> int | None:
    """Tokens of calibration text; of records from before they were counted samples times length of what was drawn."""
    counted = [stage.calibration_tokens for stage in record.run.stages if stage.calibration_tokens is not None]
    if counted:
        return sum(counted)
    if not any(part.get("purpose") == "calibration" for part in record.provenance.data):
        return None
    settings = record.run.config.get("calibration")
    if not isinstance(settings, dict):
        return None
    samples, length = settings.get("num_samples"), settings.get("seq_len")
    return samples * length if isinstance(samples, int) and isinstance(length, int) else None


def depends_on_seed(record: Record) -> bool:
    """Whether another seed would give another model: as the record says, else where there was training or a random draw."""
    if record.run.depends_on_seed is not None:
        return record.run.depends_on_seed
    return record.run.method in DRAWN_AT_RANDOM or training_tokens(record) != 0


def tracks(tokens: Sequence[float | None], contenders: Sequence[Hashable]) -> list[str]:
    """The name of the track of each of several entries of one model.

    Args:
        tokens: training tokens of each (mean over its seeds); None where they are not known.
        contenders: whose entry it is. Windows of 5 % are laid so that most contenders meet, then most entries, then by fewer
            tokens; what they hold is a track, and the rest is parted in the same way.
    """
    names = [NO_TRAINING if count == 0 else NOT_RECORDED for count in tokens]
    left = sorted((count, i) for i, count in enumerate(tokens) if count)
    windows: list[list[tuple[float, int]]] = []
    while left:
        best: list[tuple[float, int]] = []
        most = (0, 0)
        for start, (lowest, _) in enumerate(left):
            if start and lowest == left[start - 1][0]:
                continue
            window = left[start : bisect_right(left, (lowest * (1 + TOLERANCE), len(tokens)))]
            size = (len({contenders[i] for _, i in window}), len(window))
            if size > most:
                best, most = window, size
        windows.append(best)
        taken = {i for _, i in best}
        left = [one for one in left if one[1] not in taken]
    found = _names([sum(count for count, _ in window) / len(window) for window in windows])
    for window, name in zip(windows, found, strict=True):
        for _, i in window:
            names[i] = name
    return names


def _names(means: Sequence[float]) -> list[str]:
    """With as few digits as tell the tracks apart, at least three."""
    for digits in range(3, 9):
        names = [f"{_tokens(float(f'{mean:.{digits}g}'))} training tokens" for mean in means]
        if len(set(names)) == len(names):
            return names
    return [f"{mean!r} training tokens" for mean in means]


def _tokens(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.9g} {unit}"
    return f"{count:.9g}"
