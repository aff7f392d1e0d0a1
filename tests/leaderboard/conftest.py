"""One small synthetic grid and its page, built once for the whole session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from leaderboard import build_report, synthetic


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dense model, four methods at two sparsities, one of them with three seeds, one skipped cell."""
    out = tmp_path_factory.mktemp("grid")
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
