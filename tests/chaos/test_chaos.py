"""The short version of the chaos test; the long one is `python -m tests.chaos.kill_grid --kills 50`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.experiments.support import ROOT


@pytest.mark.slow
def test_a_grid_killed_ten_times_ends_with_the_records_of_an_undisturbed_run() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.kill_grid", "--kills", "10", "--seed", "7"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all records equal" in done.stdout
