"""What a stage cost: seconds by the monotonic clock, and the peak memory of this process (and its GPU)."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HIGH_WATER = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclass
class Cost:
    seconds: float = 0.0
    peak_memory_bytes: int | None = None


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Fills the yielded `Cost` when the block ends. GPU memory counts where a GPU is used, process memory otherwise."""
    import torch

    cost = Cost()
    has_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    _reset_high_water()
    started = time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - started
        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
        cost.peak_memory_bytes = on_gpu or _high_water_bytes()


def _reset_high_water() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _high_water_bytes() -> int:
    with contextlib.suppress(OSError):
        found = HIGH_WATER.search(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
        if found:
            return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
