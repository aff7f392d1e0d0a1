"""The command line's short options: none is dropped for another, and what is said twice must agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunebench.experiments.load_config import load_config
from prunebench.models.errors import BadInput
from prunebench.models.loading import ModelSpec
from prunebench.run_all import main
from tests.experiments.support import Bench, save_tiny_model


def models(settings: list[str], path: Path | None = None, **shorthands: Any) -> tuple[ModelSpec, ...]:
    return load_config(path, settings, shorthands).grid.model


def test_settings_of_a_model_stay_beside_its_name() -> None:
    (spec,) = models(['grid.model=[{name: X/Y, dtype: bfloat16, device: "cuda:9"}]'], model="X/Y")
    assert spec == ModelSpec(name="X/Y", dtype="bfloat16", device="cuda:9")
    assert models(["grid.model={name: X/Y, revision: abc}"], model="X/Y", dtype="float16") == (
        ModelSpec(name="X/Y", revision="abc", dtype="float16"),
    )


def test_loading_options_reach_every_model_of_the_grid(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("grid: {model: [A/a, {name: B/b, dtype: float32}]}")
    assert [spec.dtype for spec in models([], file, dtype="bfloat16")] == ["bfloat16", "bfloat16"]
    assert models([], file, model="B/b") == (ModelSpec(name="B/b", dtype="float32"),)
    assert models([], file, model="C/c", trust_remote_code=True) == (ModelSpec(name="C/c", trust_remote_code=True),)
    assert models([], None, attn_implementation="eager") == (ModelSpec(name="embedded:smollm2-135m-instruct", attn_implementation="eager"),)


@pytest.mark.parametrize(
    ("settings", "shorthands", "message"),
    [
        (["grid.model=A/a"], {"model": "B/b"}, "--model 'B/b' and --set grid.model='A/a' say two things"),
        (["grid.model=[A/a, B/b]"], {"model": "A/a"}, "say two things"),
        (["grid.model={name: A/a, dtype: float16}"], {"dtype": "float32"}, "--dtype 'float32' and dtype: 'float16'"),
        (["grid.model={name: A/a, trust_remote_code: false}"], {"trust_remote_code": True}, "--trust-remote-code True"),
        (["grid.sparsity=0.2"], {"sparsity": 0.3}, "--sparsity 0.3 and --set grid.sparsity=0.2"),
        (["grid.seed=[0, 1]"], {"seed": 0}, "--seed 0"),
        (["evaluation.limit=5"], {"limit": 6}, "--limit 6"),
        (["evaluation={limit: 5}"], {"limit": 6}, "--limit 6"),
        (["protocols=[reading]"], {"protocol": ["mmlu_5shot"]}, "--protocol"),
        (["run.workers=2"], {"workers": 3}, "--workers 3"),
        (["grid.seed=0", "grid.seed=1"], {}, "--set gives grid.seed two values, 0 and 1"),
        (["grid={seed: 0}", "grid.seed=1"], {}, "two values"),
    ],
)
def test_two_values_for_one_thing_are_refused(settings: list[str], shorthands: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("[", r"\[")):
        load_config(None, settings, shorthands)


@pytest.mark.parametrize(
    ("settings", "shorthands"),
    [
        (["grid.sparsity=[0.2]"], {"sparsity": 0.2}),
        (["protocols=[{name: reading, limit: 3}]"], {"protocol": ["reading"]}),
        (["grid.seed=1", "grid.seed=1"], {}),
    ],
)
def test_the_same_value_twice_is_accepted_and_keeps_the_settings(settings: list[str], shorthands: dict[str, Any]) -> None:
    config = load_config(None, settings, shorthands)
    assert not config.protocols or config.protocols[0].limit == 3


@pytest.mark.parametrize("verb", ["run", "plan", "status", "prune", "evaluate", "export", "validate", "clean"])
def test_every_verb_that_names_a_model_says_how_it_is_loaded(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--dtype", "--device", "--device-map", "--revision", "--trust-remote-code", "--attn-implementation"):
        assert option in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such"], "--model is given twice"),
        (["--device", "cuda:9"], "device 'cuda:9' is not available"),
        (["--set", 'grid.model=[{name: MODEL, device: "cuda:9"}]'], "device 'cuda:9' is not available"),
        (["--attn-implementation", "flash_attention_2"], "can't be loaded"),
        (["--method", "magnitude"], "--method means nothing to evaluate --model"),
        (["--seed", "0"], "--seed means nothing"),
    ],
)
def test_evaluate_drops_no_option(bench: Bench, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    given = [option.replace("MODEL", str(bench.model)) for option in options]
    common = ["evaluate", "--model", str(bench.model), "--protocol", "perplexity_passages", "--data", str(bench.data), "--plain"]
    assert main([*common, *given]) == 2
    assert message in capsys.readouterr().err


def test_one_precision_is_scored_and_another_one_too(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for dtype in ("float32", "bfloat16"):
        common = ["evaluate", "--model", str(bench.model), "--protocol", "perplexity_passages", "--data", str(bench.data), "--plain"]
        assert main([*common, "--dtype", dtype, "--out", str(bench.out)]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] != tables[1]


def test_weights_changed_in_place_are_another_cell(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    assert bench("run") == 0
    before = {path.parent.name for path in bench.record_paths()}
    held = load_file(bench.model / "model.safetensors")
    held["model.layers.1.mlp.down_proj.weight"][:, 1::2] = 0
    save_file(held, bench.model / "model.safetensors", {"format": "pt"})
    assert bench("run") == 0
    after = {path.parent.name for path in bench.record_paths()}
    assert len(after - before) == len(before) == 2
    values = [json.loads(path.read_text())["metrics"]["scores"][0]["tasks"][0]["value"] for path in bench.record_paths()]
    assert len(set(values)) == 4


def test_a_pruned_bfloat16_checkpoint_is_smaller_than_its_dense_model(tmp_path: Path) -> None:
    import torch

    from prunebench.models.tiny import tiny_model

    bench = Bench(tmp_path)
    save_tiny_model(bench.model)
    tiny_model("llama", vocab_size=300).to(torch.bfloat16).save_pretrained(bench.model)
    assert bench("run") == 0
    dense, pruned = (bench.record(method)["metrics"] for method in ("dense", "magnitude"))
    assert dense["disk_bytes"] == 2 * dense["params_total"]
    assert pruned["disk_bytes"] == 2 * pruned["params_total"] < dense["disk_bytes"]
    assert bench.record("magnitude")["provenance"]["model"]["dtype"] == "bfloat16"
