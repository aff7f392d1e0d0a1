"""Every bad input of a newcomer: one sentence, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from prunebench.run_all import main
from tests.experiments.support import Bench, grid_config


@pytest.fixture
def refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb that must be refused; returns the sentence."""

    def act(verb: str = "run", *more: str, **changes: Any) -> str:
        if changes:
            bench.configure(**changes)
        before = sorted(bench.folder.rglob("*"))
        capsys.readouterr()
        try:
            code = bench(verb, *more)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr().err.strip()
        assert code == 2
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("error: ")
        assert sorted(bench.folder.rglob("*")) == before, "something was written"
        return said.splitlines()[-1]

    return act


def test_an_unknown_method(refused: Any) -> None:
    assert "Did you mean 'magnitude'" in refused("run", "--method", "magnitud")


def test_an_unknown_protocol(refused: Any) -> None:
    assert "Did you mean 'mmlu_5shot'" in refused("run", "--protocol", "mmlu_5shto")


def test_an_unknown_model(refused: Any) -> None:
    assert "no/where/at-all" in refused("run", "--model", "no/where/at-all")


def test_a_hub_model_that_can_not_be_reached(refused: Any) -> None:
    assert "nobody/nothing" in refused("run", "--model", "nobody/nothing")


def test_an_unknown_config_key(refused: Any) -> None:
    assert "Did you mean 'sparsity'" in refused("run", "--set", "grid.sparcity=0.2")


@pytest.mark.parametrize("value", ["0", "1", "1.2", "-0.5"])
def test_a_sparsity_out_of_range(refused: Any, value: str) -> None:
    assert "grid.sparsity" in refused("run", "--set", f"grid.sparsity={value}")


def test_settings_of_a_method_that_do_not_fit_together(refused: Any) -> None:
    sentence = refused("run", "--method", "nuteprune", "--set", "method_config.nuteprune.ramp_epochs=9")
    assert sentence == "error: settings of method nuteprune: ramp_epochs = 9 is not accepted: give at most pruning_epochs, 7."


def test_a_sparsity_that_the_model_can_not_reach(refused: Any) -> None:
    sentence = refused("run", grid={"sparsity": [0.99], "basis": "total"})
    assert "0.99" in sentence
    assert "impossible" in sentence


def test_a_model_folder_without_weights(refused: Any, bench: Bench) -> None:
    (bench.model / "model.safetensors").unlink()
    assert "no weights" in refused()


def test_a_truncated_safetensors_file(refused: Any, bench: Bench) -> None:
    path = bench.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated" in refused()


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\x01" * 64, b"not it", b""])
def test_a_truncated_gguf_file(refused: Any, bench: Bench, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(bench.folder.parent / f"{bench.folder.name}-cache"))
    path = bench.folder / "model.gguf"
    path.write_bytes(content)
    assert "model.gguf" in refused("run", "--model", str(path))


def test_an_output_folder_that_is_a_file(refused: Any, bench: Bench) -> None:
    bench.out.write_text("mine")
    assert "is a file" in refused()


def test_a_missing_data_folder(refused: Any, bench: Bench) -> None:
    shutil.rmtree(bench.data)
    assert "--data" in refused()


def test_a_plugin_that_is_not_there_or_not_a_pruner(refused: Any, bench: Bench) -> None:
    assert "none.py" in refused("run", "--plugin", "none.py")
    empty = bench.folder / "empty.py"
    empty.write_text("x = 1\n")
    assert "registers no pruner" in refused("run", "--plugin", str(empty))
    broken = bench.folder / "broken.py"
    broken.write_text("import nothing_of_the_kind\n")
    assert "can't be imported" in refused("run", "--plugin", str(broken))


def test_an_unknown_option_and_an_unknown_verb(refused: Any, capsys: pytest.CaptureFixture[str]) -> None:
    refused("run", "--metod", "magnitude")
    assert main(["rnu"]) == 2
    assert "Did you mean 'run'?" in capsys.readouterr().err


def test_an_only_that_names_no_cell(refused: Any) -> None:
    assert "--only" in refused("run", "--only", "ffffffffff")


@pytest.mark.parametrize("verb", ["run", "plan", "status", "validate", "clean"])
def test_every_verb_that_reads_a_config_refuses_a_bad_one(refused: Any, verb: str) -> None:
    assert "Unknown pruner" in refused(verb, grid={"method": ["nope"]})


def test_ray_without_a_cluster_at_the_address(refused: Any) -> None:
    assert "no Ray cluster answers" in refused("run", "--executor", "ray", "--address", "127.0.0.1:1")


def test_report_of_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    from prunebench.experiments.commands import VERBS

    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert f"example: python run_all.py {verb}" in capsys.readouterr().out


def test_a_name_with_dots_can_not_leave_the_results_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.experiments.commands.request import output_folder
    from prunebench.experiments.config import GridConfig

    for name in ("../../etc", "/abs", "a/b", "..", "~", "x\0y"):
        config = GridConfig.model_validate({**grid_config(bench.model), "name": name})
        folder = output_folder(None, config)
        assert folder.parent == Path("results")
        assert folder.name not in ("..", ".")
