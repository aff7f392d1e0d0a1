"""One small synthetic grid and its page, built once for the whole session."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from leaderboard_records import HITS, HOSTILE, record, suite, task

from prunebench.leaderboard import build_report, synthetic
from prunebench.leaderboard.record import write_record


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dense model, four methods at two sparsities, one of them with three seeds, one skipped cell.

    PRUNEBENCH_GRID names the output folder of a real grid to check instead; see docs/leaderboard.md.
    """
    out = tmp_path_factory.mktemp("grid")
    if real := os.environ.get("PRUNEBENCH_GRID"):
        shutil.copytree(real, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        return out
    wanted = [synthetic.Setting("synthetic-m", "dense", None, "none", 0)]
    for sparsity in (0.2, 0.5):
        for method in ("random", "magnitude", "compresso", "short_gpt"):
            seeds = range(3) if method == "random" else range(1)
            wanted += [synthetic.Setting("synthetic-m", method, sparsity, "none", seed) for seed in seeds]
    synthetic.make_settings(out, wanted, documents=120)
    return out


@pytest.fixture(scope="session")
def page(grid: Path) -> Path:
    return build_report(grid)


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every hostile text as method, model, reason, task, suite, metric and definition."""
    out = tmp_path_factory.mktemp("hostile")
    for i, text in enumerate(HOSTILE):
        scored = suite([task(text, HITS, metric="acc", definition=text, samples_file=None)], name=text if i % 2 else "suite")
        common = {"model": text if i % 3 == 0 else "m", "command": text, "cell_id": f"h{i}", "config": {"k": text, text[:99]: 1}}
        made = record(text, scores=[scored], **common)
        made.metrics.curves[text[:50]] = [(0, 1.0), (1, math.nan), (2, 0.5)]
        write_record(out, made)
        write_record(out, record(text, status="failed", reason=text, **{**common, "cell_id": f"f{i}"}, seed=1))
    return build_report(out)
