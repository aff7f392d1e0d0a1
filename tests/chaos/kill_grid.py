"""Kills a small real grid at random moments until it has died often enough, and compares what it ends with.

    python -m tests.chaos.kill_grid --kills 50

Three methods (one of them trains and checkpoints itself) at two sparsities and the dense model, on a tiny model. Each
attempt is a fresh process that gets SIGKILL after a random time. A grid that is done is compared with an undisturbed run:
the records must be equal, times aside. Then it starts again in a new folder, until the number of kills is reached.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.experiments.support import Bench, differences

PLUGIN = Path(__file__).with_name("learned.py")
METHODS = ["magnitude", "random", "learned"]
SPARSITIES = [0.2, 0.4]
LONGEST_LIFE = 0.25  # of the time that an undisturbed run takes here


def preload() -> None:
    """Imports what a run needs, so that a forked attempt starts in milliseconds. Starts no thread."""
    import datasets  # noqa: F401
    import pandas  # noqa: F401
    import torch

    from prunebench import evaluation  # noqa: F401
    from prunebench.experiments import (
        commands,  # noqa: F401
    )

    torch.set_num_threads(1)


def attempt(bench: Bench, life: float | None) -> int | None:
    """One run in a forked process; its exit code, or None if it was killed after `life` seconds."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with (bench.folder / "log.txt").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                code = bench("run", "--plugin", str(PLUGIN))
        finally:
            os._exit(code)
    deadline = None if life is None else time.monotonic() + life
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


def struck_stage(bench: Bench) -> str:
    """The stage that a kill fell into: the one whose scratch folder was left."""
    left = [path.name.removeprefix(".tmp-").rsplit("-", 1)[0] for path in bench.out.glob("cells/*/.tmp-*") if path.is_dir()]
    return left[0] if left else "between stages"


def chaos(folder: Path, kills: int, seed: int, executor: str = "local") -> Counter[str]:
    """Kills until `kills` are reached; returns how many fell into which stage.

    Raises:
        AssertionError: a finished grid differs from the undisturbed one, or an attempt failed by itself.
    """
    preload()
    draw = random.Random(seed)
    bench = Bench(folder)
    bench.configure(
        grid={"method": METHODS, "sparsity": SPARSITIES},
        calibration={"source": "c4", "num_samples": 4, "seq_len": 16},
        run={"executor": executor},
    )
    bench.out = folder / "undisturbed"
    started = time.monotonic()
    code = attempt(bench, None)
    if code != 0:
        raise AssertionError(f"the undisturbed run ended with {code}: {(folder / 'log.txt').read_text()[-2000:]}")
    expected = bench.records()
    if len(expected) != 1 + len(METHODS) * len(SPARSITIES):
        raise AssertionError(f"the undisturbed run has {len(expected)} records")
    undisturbed = time.monotonic() - started
    print(f"undisturbed: {len(expected)} cells in {undisturbed:.1f} s", flush=True)

    struck: Counter[str] = Counter()
    grids = 0
    while struck.total() < kills or grids == 0:
        grids += 1
        bench.out = folder / f"killed-{grids}"
        while True:
            code = attempt(bench, draw.uniform(0.05, LONGEST_LIFE * undisturbed) if struck.total() < kills else None)
            if code is None:
                struck[struck_stage(bench)] += 1
                continue
            if code != 0:
                raise AssertionError(f"an attempt ended with {code}: {(folder / 'log.txt').read_text()[-2000:]}")
            break
        if wrong := differences(bench.records(), expected):
            raise AssertionError(f"after {struck.total()} kills the records differ: {wrong[:5]}")
        print(f"grid {grids} done and equal after {struck.total()} kills", flush=True)
    return struck


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        struck = chaos(Path(folder), options.kills, options.seed)
    where = ", ".join(f"{count} in {stage}" for stage, count in struck.most_common())
    print(f"{struck.total()} kills ({where}) in {time.monotonic() - started:.0f} s: all records equal the undisturbed run's")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
