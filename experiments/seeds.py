"""Seeds derived from named axes, so that adding a method or a stage never changes another one's draw."""

from __future__ import annotations

import random

from prunebench.experiments.hashing import hash_value


def seed_for(seed: int, purpose: str) -> int:
    """A seed below 2**31 for one purpose ('calibration', 'prune', 'recover', 'evaluate') of one grid seed.

    The method isn't part of it: every method of one grid seed sees the same calibration samples.
    """
    return int(hash_value({"seed": seed, "purpose": purpose})[:8], 16) % 2**31


def set_global_seeds(seed: int) -> None:
    """Seeds Python, NumPy and torch; the framework does this before each stage, methods never do."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
