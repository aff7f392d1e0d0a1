"""This module moves a target or a learning rate with the steps of training."""

from __future__ import annotations

import math
from typing import Literal

Ramp = Literal["linear", "cubic"]
Decay = Literal["constant", "linear", "cosine"]


def target_sparsity(step: int, ramp_steps: int, final: float, *, ramp: Ramp = "linear", initial: float = 0.0) -> float:
    """Returns the sparsity asked for at `step` (from 0): `initial` at first, `final` from `ramp_steps` on.

    Source: Compresso's code runs linear; its paper is reported to use cubic, which rises fast first (docs/methods/compresso.md, eq. 8).
    """
    left = 1.0 - (1.0 if ramp_steps <= 0 else min(1.0, step / ramp_steps))
    return final + (initial - final) * (left if ramp == "linear" else left**3)


def decayed(rate: float, step: int, steps: int, decay: Decay) -> float:
    """Returns the learning rate at `step` (from 0) of `steps`; "linear" and "cosine" fall to 0 at the end."""
    share = min(1.0, step / max(steps, 1))
    if decay == "constant":
        return rate
    return rate * (1 - share) if decay == "linear" else rate * 0.5 * (1 + math.cos(math.pi * share))
