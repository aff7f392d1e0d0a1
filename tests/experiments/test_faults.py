# ruff: noqa: E501 - code of plugins in strings
"""Plugins that misbehave, each in a process of its own: one failed row with its reason, and the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.leaderboard.record import read_records
from tests.experiments.support import Bench

PLUGINS = {
    "raises": "raise ValueError('no luck')",
    "hangs": "import time\n        time.sleep(3600)",
    "returns_text": "return 'masks'",
    "wrong_shapes": "return Masks((), (), (), torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))",
    "nan_masks": "good = Masks.of(Anatomy.from_model(model))\n"
    "        return replace(good, hidden=torch.full((len(good.hidden),), float('nan')))",
    "misses_budget": "return Masks.of(Anatomy.from_model(model))",
    "nan_weights": "model.get_input_embeddings().weight.data[0, 0] = float('nan')\n        return self.good(model, budget)",
    "reshapes": "layer = model.model.layers[0].mlp\n"
    "        layer.down_proj.weight.data = layer.down_proj.weight.data[:, :7].clone()\n"
    "        return self.good(model, budget, anatomy)",
    "nan_loss": "run.log_metrics(3, {'loss': float('nan')})\n        return self.good(model, budget)",
    "eats_memory": "hoard = []\n        while True:\n            hoard.append(torch.ones(2_000_000))",
    "is_killed": "import os, signal\n        os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "import os, signal\n        os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "import os\n        os._exit(3)",
    "exits_quietly": "import os\n        os._exit(0)",
    "kills_server": "import os, time\n        os.kill(os.getppid(), 9)\n        time.sleep(3600)",
    "no_support": "return None",
}

TEMPLATE = """
from dataclasses import replace
import torch
from prunebench.methods.pruner import Pruner, PrunerConfig, Support
from prunebench.methods.registry import get_pruner, register
from prunebench.models.anatomy import Anatomy
from prunebench.models.masks import Masks

@register("{name}")
class Plugin(Pruner[PrunerConfig]):
    needs_calibration = False

    def supports(self, anatomy):
        return {support}

    def good(self, model, budget, anatomy=None):
        return get_pruner("random")().prune(model, budget, None, self.run)

    def prune(self, model, budget, data, run):
        self.run = run
        anatomy = Anatomy.from_model(model)
        {body}
"""

EXPECTED = {
    "raises": ("failed", "raises raised ValueError in prune: no luck"),
    "hangs": ("failed", "run.cell_minutes"),
    "returns_text": ("failed", "returned str from prune"),
    "wrong_shapes": ("failed", "masks that can't be sliced"),
    "nan_masks": ("failed", "masks are boolean"),
    "misses_budget": ("failed", "budget"),
    "nan_weights": ("failed", "NaN or infinite values in model.embed_tokens.weight"),
    "reshapes": ("failed", "down_proj"),
    "nan_loss": ("failed", "loss is nan at step 3"),
    "eats_memory": ("out_of_memory", "memory"),
    "is_killed": ("out_of_memory", "killed in stage prune"),
    "crashes": ("failed", "SIGSEGV"),
    "exits": ("failed", "ended with code 3"),
    "exits_quietly": ("failed", "ended with code 0 in stage prune"),
    "kills_server": ("failed", "the server that forks all processes, ended with code 255 in stage prune"),
    "no_support": ("skipped", "only for odd models"),
}


PROCESSES_ONLY = (
    "hangs",
    "eats_memory",
    "is_killed",
    "crashes",
    "exits",
    "exits_quietly",
    "kills_server",
)  # these would end or hold up this process


def write_plugins(folder: Path, names: list[str], suffix: str = "") -> list[str]:
    options = []
    for name in names:
        support = "Support.no('only for odd models')" if name == "no_support" else "Support.yes()"
        path = folder / f"{name}{suffix}.py"
        path.write_text(TEMPLATE.format(name=f"{name}{suffix}", body=PLUGINS[name], support=support))
        options += ["--plugin", str(path)]
    return options


def check_rows(bench: Bench, names: list[str], suffix: str = "") -> None:
    records, problems = read_records(bench.out)
    assert not problems
    found = {record.run.method: record for record in records}
    for name in names:
        status, words = EXPECTED[name]
        record = found[f"{name}{suffix}"]
        assert record.run.status == status, (name, record.run.reason)
        assert words.replace(f"{name} raised", f"{name}{suffix} raised") in record.run.reason, (name, record.run.reason)
        assert "\n" not in record.run.reason
        assert not record.metrics.scores
    assert all(found[method].run.status == "done" for method in ("dense", "magnitude") if method in found)


def test_plugins_that_misbehave_in_this_process_are_rows_with_a_reason(bench: Bench) -> None:
    names = [name for name in PLUGINS if name not in PROCESSES_ONLY]
    bench.configure(grid={"method": [*(f"{name}_here" for name in names), "magnitude"]})
    assert bench("run", *write_plugins(bench.folder, names, "_here")) == 1
    check_rows(bench, names, "_here")


@pytest.mark.slow
def test_plugins_that_take_their_process_down_are_rows_with_a_reason(bench: Bench) -> None:
    names = [name for name in PROCESSES_ONLY if name not in ("hangs", "kills_server")]
    bench.configure(
        grid={"method": [*names, "magnitude"]}, run={"executor": "processes", "workers": 2, "cell_minutes": 3, "memory_gb_per_cell": 3}
    )
    assert bench("run", *write_plugins(bench.folder, names)) == 1
    check_rows(bench, names)
    assert bench.record("magnitude")["run"]["status"] == "done"


@pytest.mark.slow
def test_a_plugin_that_hangs_is_ended_and_recorded(bench: Bench) -> None:
    bench.configure(grid={"method": ["hangs"], "dense": False}, run={"executor": "processes", "cell_minutes": 0.25})
    assert bench("run", *write_plugins(bench.folder, ["hangs"])) == 1
    check_rows(bench, ["hangs"])


def test_processes_give_the_records_of_local(finished: Bench, tmp_path: Path) -> None:
    other = object.__new__(Bench)
    other.__dict__.update(finished.__dict__)
    other.out = tmp_path / "processes"
    assert other("run", "--executor", "processes", "--workers", "2") == 0
    assert other.records() == finished.records()
