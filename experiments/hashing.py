"""Hashes of values, by their canonical JSON; files are hashed by `models.files`."""

from __future__ import annotations

import hashlib
import json
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
