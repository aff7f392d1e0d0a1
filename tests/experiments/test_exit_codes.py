"""Nothing but success exits 0: a plugin that leaves by any door is a failed row, or is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunebench.experiments import progress
from prunebench.experiments.cell_folder import CellFolder
from prunebench.experiments.run_grid import GridResult
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
        ("local", "prune", "import typer; raise typer.Exit(0)", "raised Exit in prune"),
        ("local", "prune", "run.progress('x', sys.exit(0), 1)", "called sys.exit(0) in prune"),
        ("local", "prune", "raise type('Leave', (SystemExit,), {})(0)", "called sys.exit(0) in prune"),
        ("local", "prune", "raise BaseExceptionGroup('all', [SystemExit(0)])", "raised BaseExceptionGroup in prune"),
        ("local", "prune", "raise ValueError('\\udcff')", r"raised ValueError in prune: \udcff"),
        ("local", "prune", "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", "raised Mute in prune: its message can't"),
        ("local", "prune", "sys.exit(type('Odd', (), {'__repr__': lambda self: 1 / 0})())", "called sys.exit(Odd) in prune"),
        ("local", "supports", "return None", "returned NoneType; it must return a Support"),
        ("local", "supports", "return Support.no(' ')", "says no without a reason"),
        ("local", "supports", "raise GeneratorExit", "raised GeneratorExit in prune"),
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
    assert "can't be imported: it called sys.exit(" in capsys.readouterr().err


def refusals(bench: Bench, capsys: pytest.CaptureFixture[str], path: Path, *verbs: str) -> str:
    """What all these verbs say of a plugin that they refuse."""
    said = set()
    for verb in verbs:
        capsys.readouterr()
        assert bench(verb, "--plugin", str(path)) == 2
        said.add(capsys.readouterr().err.strip())
    (sentence,) = said
    assert not bench.out.exists()
    assert len(sentence.splitlines()) == 1
    return sentence


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("leaves", "sys.exit(0)", "settings of method config_leaves called sys.exit(0)"),
        ("ends", "import typer; raise typer.Exit(0)", "settings of method config_ends raised Exit: 0"),
        ("aborts", "import typer; raise typer.Abort()", "raised Abort"),
        ("stops", "raise GeneratorExit", "raised GeneratorExit"),
        ("fails", "raise RuntimeError('two\\nlines')", "raised RuntimeError: two lines."),
        ("is_mute", "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", "its message can't be read"),
    ],
)
def test_settings_that_leave_or_fail_are_refused(name: str, code: str, words: str, bench: Bench, capsys: Any) -> None:
    path = plugin(bench, f"config_{name}", config=code)
    assert words in refusals(bench, capsys, path, "validate", "plan", "status", "run")


CONFIGS = {
    "percent": (
        "share: float = 20.0",
        "@field_validator('share')\n    def f(cls, v): return v / 100",
        "share 20.0 becomes 0.2",
    ),
    "dropping": ("model_config = ConfigDict(extra='ignore')\n    norm: str = 'l2'", "", "drops the key 'nrom'. Did you mean 'norm'?"),
    "endless": ("model_config = ConfigDict(allow_inf_nan=True)\n    most: float = math.inf", "", "raised ValueError: Out of range float"),
    "aliased": ("rate: float = Field(1.0, alias='learning_rate')", "", "can't be read again"),
    "opaque": (
        "model_config = ConfigDict(arbitrary_types_allowed=True)\n    what: object = object()",
        "",
        "raised PydanticSerializationError",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_that_would_mean_something_else_when_a_stage_reads_them_are_refused(name: str, bench: Bench, capsys: Any) -> None:
    fields, validator, words = CONFIGS[name]
    path = bench.folder / f"{name}.py"
    path.write_text(
        "import math\nfrom pydantic import ConfigDict, Field, field_validator\n"
        "from prunebench.methods.pruner import Pruner, PrunerConfig\nfrom prunebench.methods.registry import register\n\n"
        f"class Config(PrunerConfig):\n    {fields}\n    {validator}\n\n"
        f"@register('{name}')\nclass Mine(Pruner):\n    Config = Config\n    def prune(self, model, budget, data, run): return None\n"
    )
    bench.configure(grid={"method": [{"name": name, "config": {"nrom": "l1"} if name == "dropping" else {}}]})
    assert words in refusals(bench, capsys, path, "validate", "plan", "run")


def test_a_config_that_is_none_is_refused(bench: Bench, capsys: Any) -> None:
    path = plugin(bench, "shapeless")
    path.write_text(path.read_text().replace("Config = Config", "Config = dict"))
    assert "it must be a subclass of PrunerConfig" in refusals(bench, capsys, path, "validate", "run")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("leaves", "sys.exit(0)", "supports() of method supports_leaves called sys.exit(0)"),
        ("ends", "import typer; raise typer.Exit(0)", "supports() of method supports_ends raised Exit"),
        ("fails", "raise KeyError('no_such_part')", "supports() of method supports_fails raised KeyError: 'no_such_part'"),
        ("is_silent", "return None", "returned NoneType; it must return a Support"),
    ],
)
def test_a_method_that_can_not_say_what_it_supports_is_refused_before_a_run(
    name: str, code: str, words: str, bench: Bench, capsys: Any
) -> None:
    assert words in refusals(bench, capsys, plugin(bench, f"supports_{name}", supports=code), "validate", "plan")


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("counts_badly", "def training_tokens(self): raise OverflowError('too many')", "training_tokens() of method counts_badly raised"),
        ("counts_words", "def training_tokens(self): return 'many'", "returned 'many'; it must return a number of tokens, or None"),
        ("counts_down", "def training_tokens(self): return -1", "returned -1"),
        (
            "measures_badly",
            "def lengths(self, seq_len, prompt_tokens): sys.exit(0)",
            "lengths() of method measures_badly called sys.exit(0)",
        ),
        ("measures_nothing", "def lengths(self, seq_len, prompt_tokens): return None", "lengths() of method measures_nothing raised"),
        ("is_not_made", "def __init__(self, config=None): raise SystemExit", "when it is made, called sys.exit(None)"),
    ],
)
def test_a_method_that_can_not_answer_is_refused(name: str, method: str, words: str, bench: Bench, capsys: Any) -> None:
    path = plugin(bench, name)
    path.write_text(path.read_text() + f"\n    {method}\n")
    assert words in refusals(bench, capsys, path, "validate", "plan", "run")


RECOVERY = """
import sys
from prunebench.methods.recovery.recovery import Recovery, RecoveryConfig
from prunebench.methods.registry import register_recovery

@register_recovery("{name}")
class Leaving(Recovery):
    trains = False
    @classmethod
    def training_tokens(cls, settings): {tokens}
    def recover(self, model, settings, data, run): {recover}
"""


def test_a_recovery_that_leaves_is_a_failed_row_of_its_own(bench: Bench) -> None:
    path = bench.folder / "leaving_recovery.py"
    path.write_text(RECOVERY.format(name="leaving_recovery", tokens="return 0", recover="sys.exit(0)"))
    bench.configure(grid={"recovery": ["leaving_recovery"], "dense": False})
    assert bench("run", "--plugin", str(path)) == 1
    assert "recovery leaving_recovery called sys.exit(0) in recover" in bench.record("magnitude")["run"]["reason"]


def test_a_recovery_that_can_not_answer_is_refused(bench: Bench, capsys: Any) -> None:
    path = bench.folder / "mute_recovery.py"
    path.write_text(RECOVERY.format(name="mute_recovery", tokens="raise SystemExit", recover="return {'tokens': 0}"))
    bench.configure(grid={"recovery": ["mute_recovery"], "dense": False})
    assert "training_tokens() of recovery mute_recovery called sys.exit(None)" in refusals(bench, capsys, path, "validate", "run")


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_a_reader_of_the_progress_that_leaves_ends_the_run_and_fails_no_cell(executor: str, bench: Bench, monkeypatch: Any) -> None:
    class Gone:
        def write(self, text: str) -> None:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(progress, "make_view", lambda plain: progress.PlainView(Gone()))  # type: ignore[arg-type]
    assert bench("run", "--executor", executor) == 130
    assert all(record["run"]["status"] in ("done", "interrupted") for record in bench.records().values())
    monkeypatch.undo()
    assert bench("run") == 0


class Impatient(progress.PlainView):
    """Somebody presses Ctrl-C as soon as the first cell shows progress."""

    def event(self, event: progress.Event) -> None:
        super().event(event)
        if event["kind"] == "progress" and event["done"] and not self.totals.ended:
            os.kill(os.getpid(), signal.SIGINT)
            self.totals.ended["told"] = "once"


@pytest.mark.parametrize("verb", ["run", "prune"])
def test_a_run_that_is_stopped_ends_with_130_and_goes_on(verb: str, bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "make_view", lambda plain: Impatient())
    assert bench(verb) == 130
    assert not any(record["run"]["status"] == "done" for record in bench.records().values())
    monkeypatch.undo()
    assert bench(verb) == 0


def test_an_evaluation_that_is_stopped_ends_with_130(bench: Bench, monkeypatch: Any) -> None:
    arguments = ["evaluate", "--model", str(bench.model), "--data", str(bench.data), "--protocol", "perplexity_passages", "--plain"]
    monkeypatch.setattr(progress, "make_view", lambda plain: Impatient())
    assert main(arguments) == 130
    monkeypatch.undo()
    assert main(arguments) == 0


def test_a_model_that_is_not_here_yet_is_noted(bench: Bench, capsys: Any) -> None:
    (bench.folder / "model.gguf").write_bytes(b"GGUF and more")
    for verb in ("validate", "plan"):
        assert bench(verb, "--model", str(bench.folder / "model.gguf")) == 0
        assert "isn't here yet; its files are checked, and whether it can be pruned" in capsys.readouterr().out


def test_a_cell_that_no_executor_speaks_of_is_no_success() -> None:
    assert GridResult(("a",), {"a": "done"}).exit_code == 0
    assert GridResult(("a", "b"), {"a": "done"}).exit_code == 1
    assert GridResult(("a", "b"), {"a": "done"}).text() == "1 done, 1 left"
    assert GridResult().exit_code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("    @classmethod\n    def quick_config(cls): sys.exit(0)", "quick_config() called sys.exit(0)"),
        ("    def supports(self, anatomy): sys.exit(0)", "supports() called sys.exit(0)"),
        ("    def supports(self, anatomy): return True", "supports() returned bool"),
        ("    def prune(self, model, budget, data, run): sys.exit(0)", "prune() called sys.exit(0)"),
    ],
)
def test_the_kit_hears_a_method_that_leaves(change: str, words: str, bench: Bench, capsys: Any) -> None:
    name = f"kit_{abs(hash(change)) % 10**8}"
    path = plugin(bench, name)
    path.write_text(path.read_text() + f"\n{change}\n")
    assert main(["conformance", str(path), "--family", "llama"]) == 1
    assert words in capsys.readouterr().out


def test_the_kit_has_nothing_to_say_of_a_file_without_pruners(bench: Bench, capsys: Any) -> None:
    path = bench.folder / "only_a_recovery.py"
    path.write_text(RECOVERY.format(name="only_a_recovery", tokens="return 0", recover="return {'tokens': 0}"))
    assert main(["conformance", str(path)]) == 2
    assert "registers no pruner" in capsys.readouterr().err


def test_clean_says_what_it_could_not_delete(copy_of_finished: Bench, capsys: Any) -> None:
    cell = copy_of_finished.cell("magnitude")
    with CellFolder(copy_of_finished.out, cell.name).lock() as mine:
        assert mine
        assert copy_of_finished("clean", "--all") == 1
    assert "1 left alone, a run works on them" in capsys.readouterr().out
    assert cell.exists()
    assert copy_of_finished("clean", "--all") == 0
    assert not cell.exists()


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
