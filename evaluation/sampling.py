"""Which items a limit keeps: drawn once from the seed and the data's size, the same for every model."""

from __future__ import annotations

import hashlib
import random


def allocate(sizes: dict[str, int], limit: int | None) -> dict[str, int]:
    """Items of each stratum under a limit on all of them, proportional to size (largest remainder).

    Every stratum keeps at least one item, so a limit below the number of strata keeps one of each.
    """
    total = sum(sizes.values())
    if limit is None or limit >= total:
        return dict(sizes)
    exact = {name: size * limit / total for name, size in sizes.items()}
    kept = {name: max(1, int(share)) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (int(exact[name]) - exact[name], name))
    missing = limit - sum(kept.values())
    for name in by_remainder:
        if missing <= 0:
            break
        if kept[name] < sizes[name]:
            kept[name] += 1
            missing -= 1
    return kept


def chosen_indices(size: int, count: int, seed: int, task: str, stratum: str) -> list[int]:
    """`count` of `size` row indices in row order; depends on nothing but the arguments."""
    if count >= size:
        return list(range(size))
    digest = hashlib.sha256(f"{seed}|{task}|{stratum}|{size}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    order = list(range(size))
    generator.shuffle(order)  # a larger limit keeps what a smaller one chose
    return sorted(order[:count])
