"""The peak memory of this process and its GPUs."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

import torch

HIGH_WATER = re.compile(r"VmHWM:\s+(\d+) kB")


def reset_peak_memory() -> None:
    """Begins a new peak: of what is allocated on every GPU in use, and of the process's resident size where the system allows."""
    if _uses_gpu():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Bytes at the peak: allocated on all GPUs where one is used, else resident in this process."""
    if _uses_gpu():
        on_gpu = sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
        if on_gpu:
            return on_gpu
    with contextlib.suppress(OSError):
        found = HIGH_WATER.search(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
        if found:
            return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _uses_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
