"""Hashes that ids and stamps are made of: canonical JSON for values, SHA-256 for files and folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 22
ID_CHARS = 16


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def hash_value(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def short_id(value: Any) -> str:
    return hash_value(value)[:ID_CHARS]


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of the bytes of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_folder(folder: Path) -> str:
    """SHA-256 (hex) over the relative names and contents of every file below `folder`."""
    return hash_value({path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()})


def fingerprint(path: Path, samples: int = 16, block: int = 1 << 16) -> str:
    """A quick stand-in for `hash_file` on files of many gigabytes: size, head, tail and evenly spaced blocks."""
    size = path.stat().st_size
    if size <= samples * block * 2:
        return hash_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(samples + 1):
            file.seek((size - block) * index // samples)
            digest.update(file.read(block))
    return digest.hexdigest()
