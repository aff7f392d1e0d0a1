# ruff: noqa: E501 - code of plugins in strings
"""Pruners from outside: the example of the docs, an installed package, and broken ones that the kit must fail."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from prunebench.run_all import main
from tests.experiments.support import ROOT, Bench

CALIBRATION = {"source": "c4", "num_samples": 4, "seq_len": 16}


def documented_example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add-a-pruner.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(code)


def test_the_documented_pruner_has_at_most_forty_lines() -> None:
    assert len(documented_example().splitlines()) <= 40


def test_the_documented_pruner_runs_beside_the_built_ins_and_stands_on_the_page(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = bench.folder / "quiet.py"
    plugin.write_text(documented_example(), encoding="utf-8")
    bench.configure(grid={"method": ["random", "magnitude", "quiet"]}, calibration=CALIBRATION)
    arguments = [argument for argument in bench.arguments("run") if argument != "--no-report"]
    assert main([*arguments, "--plugin", str(plugin)]) == 0
    page = Path(re.findall(r"page: (.*)", capsys.readouterr().out)[0]).read_text(encoding="utf-8")
    for method in ("quiet", "magnitude", "random"):
        assert bench.record(method)["run"]["status"] == "done"
        assert method in page
    assert f"--plugin {plugin}" in bench.record("quiet")["run"]["command"]


def test_changed_plugin_code_makes_a_new_cell(bench: Bench) -> None:
    ids = []
    for comment in ("", "# better\n"):
        plugin = bench.folder / f"quiet_{len(comment)}.py"
        name = f"quiet_{len(comment)}"
        plugin.write_text(documented_example().replace('"quiet"', f'"{name}"') + comment, encoding="utf-8")
        from prunebench.experiments.plan import code_source
        from prunebench.methods.registry import get_pruner, load_plugin

        load_plugin(plugin)
        ids.append(code_source(get_pruner(name)))
    assert ids[0] != ids[1]
    assert all(one.startswith("plugin:") for one in ids)


def test_the_documented_pruner_keeps_every_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "quiet_promises.py"
    plugin.write_text(documented_example().replace('"quiet"', '"quiet_promises"'), encoding="utf-8")
    assert main(["conformance", str(plugin)]) == 0
    assert "0 broken" in capsys.readouterr().out


@pytest.mark.slow
def test_an_installed_package_adds_its_pruner_without_a_word(bench: Bench) -> None:
    place = bench.folder / "fresh"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # What prunebench needs is borrowed from this environment; the example itself is installed for real.
    borrowed = [str(ROOT), sysconfig.get_path("purelib"), *site.getsitepackages()]
    Path(packages, "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)) + "\n", encoding="utf-8")
    source = bench.folder / "source"
    subprocess.run(["cp", "-r", ROOT / "examples" / "prunebench-quiet", source], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", packages, source]
    subprocess.run(install, check=True, cwd=bench.folder)
    bench.configure(grid={"method": ["quiet_peak", "magnitude"], "dense": False}, calibration=CALIBRATION)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, ROOT / "run_all.py", *bench.arguments("run")],
        capture_output=True,
        text=True,
        cwd=bench.folder,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert bench.record("quiet_peak")["run"]["status"] == "done"
    assert bench.record("magnitude")["run"]["status"] == "done"


# name -> (body of the class, words that the finding must hold: the promise that it breaks)
BROKEN = {
    "raises": ("def prune(self, model, budget, data, run):\n        raise RuntimeError('no')", "prune() raised RuntimeError: no"),
    "returns_none": ("def prune(self, model, budget, data, run):\n        return None", "it must return models.masks.Masks"),
    "prunes_nothing": ("def prune(self, model, budget, data, run):\n        return Masks.of(Anatomy.from_model(model))", "hits the budget"),
    "cuts_itself": (
        "def prune(self, model, budget, data, run):\n        mlp = model.model.layers[0].mlp\n"
        "        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, :9].clone()\n        return Masks.of(Anatomy.from_model(tiny_model('llama')))",
        "changed the shape of model.layers.0.mlp.down_proj.weight",
    ),
    "leaves_nan": (
        "def prune(self, model, budget, data, run):\n        model.get_output_embeddings().weight.data[0] = float('nan')\n"
        "        return good(model, budget, run)",
        "weights that are not finite",
    ),
    "rolls_dice": (
        "def prune(self, model, budget, data, run):\n        import os\n"
        "        return good(model, budget, replace(run, seed=int.from_bytes(os.urandom(4), 'big')))",
        "is deterministic for a seed",
    ),
    "seeds_globally": (
        "def prune(self, model, budget, data, run):\n        torch.manual_seed(run.seed + 99)\n        return good(model, budget, run)",
        "changed the global torch random state",
    ),
    "bad_masks": (
        "def prune(self, model, budget, data, run):\n        masks = good(model, budget, run)\n"
        "        return replace(masks, hidden=masks.hidden.float())",
        "masks can't be sliced",
    ),
    "hangs": ("def prune(self, model, budget, data, run):\n        import time\n        time.sleep(3600)", "did not return within"),
    "no_without_reason": (
        "def supports(self, anatomy):\n        return Support.no('')\n\n    def prune(self, model, budget, data, run):\n        return None",
        "says no without a reason",
    ),
    "sets_dtype": (
        "def prune(self, model, budget, data, run):\n        torch.set_default_dtype(torch.float64)\n        return good(model, budget, run)",
        "changed the default dtype",
    ),
}


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    import functools

    from prunebench.methods import conformance

    monkeypatch.setattr(conformance, "check_pruner", functools.partial(conformance.check_pruner, timeout=3.0))


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.usefixtures("short_patience")
def test_the_kit_names_the_promise_that_a_broken_plugin_breaks(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    body, words = BROKEN[name]
    plugin = tmp_path / f"broken_{name}.py"
    plugin.write_text(
        "from dataclasses import replace\nimport torch\nfrom prunebench.methods.pruner import Pruner, Support\n"
        "from prunebench.methods.registry import get_pruner, register\nfrom prunebench.models.anatomy import Anatomy\nfrom prunebench.models.masks import Masks\n"
        "from prunebench.models.tiny import tiny_model\n\n"
        "def good(model, budget, run):\n    return get_pruner('random')().prune(model, budget, None, run)\n\n"
        f"@register('broken_{name}')\nclass Broken(Pruner):\n    {body}\n",
        encoding="utf-8",
    )
    try:
        assert main(["conformance", str(plugin), "--family", "llama"]) == 1
    finally:
        torch.set_default_dtype(torch.float32)
    said = capsys.readouterr().out
    assert words in said
    assert "0 broken" not in said
