"""Fixtures of the experiments tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.experiments.support import Bench


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A tiny grid (dense, magnitude, random) that ran undisturbed; tests must not change it."""
    bench = Bench(tmp_path_factory.mktemp("finished"))
    bench.configure(grid={"method": ["magnitude", "random"]})
    assert bench("run") == 0
    return bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A tiny model, data and config of its own."""
    return Bench(tmp_path)


@pytest.fixture
def copy_of_finished(finished: Bench) -> Bench:
    """The finished grid with results that a test may damage; same model and data, so the same cells."""
    return clone(finished)


def clone(bench: Bench) -> Bench:
    other = object.__new__(Bench)
    other.__dict__.update(bench.__dict__)
    number = len(list(bench.folder.glob("out-*")))
    other.out = bench.folder / f"out-{number}"
    shutil.copytree(bench.out, other.out, symlinks=True)
    return other
