"""Ids and seeds from values, by the hash of their canonical JSON; files are hashed by `models.files`."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

ID_CHARS = 16


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def hash_value(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def short_id(value: Any) -> str:
    return hash_value(value)[:ID_CHARS]


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
