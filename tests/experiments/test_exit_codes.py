"""Nothing but success exits 0: a plugin that leaves by any door is a failed row, or is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunebench.run_all import main
from tests.experiments.support import ROOT, Bench

METHOD = """
import sys
from pydantic import model_validator
from prunebench.methods.magnitude import Magnitude, MagnitudeConfig
from prunebench.methods.pruner import Support
from prunebench.methods.registry import register

class Config(MagnitudeConfig):
    @model_validator(mode="after")
    def check(self):
        {config}
        return self

@register("{name}")
class Leaving(Magnitude):
    name = "{name}"
    Config = Config

    def supports(self, anatomy):
        {supports}
        return Support.yes()

    def prune(self, model, budget, data, run):
        {prune}
        return super().prune(model, budget, data, run)
"""


def plugin(bench: Bench, name: str, **doors: str) -> Path:
    path = bench.folder / f"{name}.py"
    path.write_text(METHOD.format(name=name, **{door: doors.get(door, "pass") for door in ("config", "supports", "prune")}))
    bench.configure(grid={"method": [name, "magnitude"], "dense": False})
    return path


@pytest.mark.parametrize(
    ("executor", "door", "code", "words"),
    [
        ("local", "prune", "sys.exit(0)", "called sys.exit(0) in prune"),
        ("local", "prune", "raise SystemExit", "called sys.exit(None) in prune"),
        ("local", "supports", "sys.exit(0)", "called sys.exit(0) in prune"),
        ("local", "prune", "raise GeneratorExit", "raised GeneratorExit in prune"),
        ("processes", "prune", "sys.exit(0)", "called sys.exit(0) in prune"),
    ],
)
def test_a_method_that_leaves_is_a_failed_row(bench: Bench, executor: str, door: str, code: str, words: str) -> None:
    name = f"leaving_{executor}_{abs(hash((door, code))) % 10**8}"
    path = plugin(bench, name, **{door: code})
    assert bench("run", "--plugin", str(path), "--executor", executor) == 1
    run = bench.record(name)["run"]
    assert run["status"] == "failed"
    assert words in run["reason"]
    assert bench.record("magnitude")["run"]["status"] == "done"


def test_a_worker_that_vanishes_is_a_failed_row(bench: Bench) -> None:
    path = plugin(bench, "vanishing", prune="import os; os._exit(0)")
    assert bench("run", "--plugin", str(path), "--executor", "processes") == 1
    assert bench.record("vanishing")["run"]["status"] == "failed"
    assert bench.record("magnitude")["run"]["status"] == "done"


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "raise SystemExit", "quit()"])
def test_a_plugin_that_leaves_while_it_is_imported_is_refused(bench: Bench, capsys: Any, text: str) -> None:
    path = bench.folder / "leaving.py"
    path.write_text(text)
    assert bench("run", "--plugin", str(path)) == 2
    assert "can't be imported: SystemExit" in capsys.readouterr().err


def test_settings_that_leave_are_refused(bench: Bench, capsys: Any) -> None:
    path = plugin(bench, "leaving_config", config="sys.exit(0)")
    assert bench("validate", "--plugin", str(path)) == 2
    assert "called sys.exit(0)" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_success(bench: Bench) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_all.py"), *bench.arguments("validate")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["rnu"], 2),
        (["run", "--nope"], 2),
        (["export"], 2),
        (["report"], 2),
        (["evaluate"], 2),
        (["conformance"], 2),
        (["conformance", "no_such_method"], 2),
        (["conformance", "magnitude", "--family", "no_such_family"], 2),
        (["conformance", "magnitude", "--family", "llama"], 0),
        (["conformance", "slicegpt", "--family", "llama"], 1),
        (["validate", "--config", "no/such/file.yaml"], 2),
        (["clean", "--only", "ffff"], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    assert main(arguments) == code
