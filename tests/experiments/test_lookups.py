"""Texts and data that a grid names are looked for before anything runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.experiments.support import Bench, save_tiny_model


@pytest.fixture
def refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> Any:
    """Configures a grid that every verb that could run it must refuse; returns the sentence."""

    save_tiny_model(bench.model, max_position_embeddings=4096)

    def act(**changes: Any) -> str:
        bench.configure(**changes)
        said = set()
        for verb in ("validate", "plan", "run"):
            capsys.readouterr()
            assert bench(verb) == 2
            said.add(capsys.readouterr().err.strip().splitlines()[-1])
        assert not bench.out.exists()
        (sentence,) = said
        return sentence

    return act


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("c5", "calibration.source: calibration source 'c5' is unknown"),
        ("wikitext2", "is on the hub, but HF_HUB_OFFLINE is set; give a folder that has it with --data"),
        ("someone/some-texts", "is on the hub, but HF_HUB_OFFLINE is set"),
        ("../secrets", "is not a name"),
    ],
)
def test_calibration_text_that_is_nowhere(refused: Any, source: str, words: str) -> None:
    assert words in refused(grid={"method": ["wanda_sp"]}, calibration={"source": source, "num_samples": 2, "seq_len": 8})


def test_a_method_that_reads_no_text_needs_its_name_alone(bench: Bench, refused: Any) -> None:
    assert "is unknown" in refused(calibration={"source": "c5"})
    bench.configure(calibration={"source": "wikitext2"})
    assert bench("validate") == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [("not JSON", "line 1 is not JSON"), ("[]", "is not a JSON object"), ('{"a": 1}', "a row needs"), ("", "holds no rows")],
)
def test_a_calibration_file_that_can_not_be_read(bench: Bench, refused: Any, text: str, words: str) -> None:
    (bench.data / "calibration" / "mine.jsonl").write_text(text)
    assert words in refused(grid={"method": ["wanda_sp"]}, calibration={"source": "mine", "num_samples": 2, "seq_len": 8})


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"recovery": [{"name": "lora", "config": {"text": {"source": "alpaca"}}}]}, "text.source of recovery lora"),
        ({"method": [{"name": "compresso", "config": {"text": {"source": "dolly"}}}]}, "text.source of method compresso"),
        ({"method": [{"name": "nuteprune", "config": {"finetune_text": {"source": "dolly"}}}]}, "finetune_text.source of method nuteprune"),
    ],
)
def test_training_text_that_is_nowhere(refused: Any, grid: dict[str, Any], words: str) -> None:
    assert words in refused(grid=grid)


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("mmlu_5shot_four", "protocol mmlu_5shot_four: No data for task 'mmlu_four' (astronomy): the data folder has no mmlu/test.jsonl"),
        ("perplexity_2048", "the data folder has no wikitext2_raw/test.jsonl"),
        ("bbh_3shot_direct", "the data folder has no bbh/boolean_expressions.jsonl"),
    ],
)
def test_benchmark_data_that_are_nowhere(bench: Bench, refused: Any, protocol: str, words: str) -> None:
    assert words in refused(protocols=[{"name": protocol, "sources": ["data-dir"]}], grid={"model": str(bench.model)})


def test_examples_of_a_task_are_looked_for_too(bench: Bench, refused: Any) -> None:
    rows = [{"question": "?", "subject": s, "choices": list("abcd"), "answer": 0} for s in ("astronomy",)]
    (bench.data / "mmlu").mkdir()
    (bench.data / "mmlu" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "the data folder has no mmlu/dev.jsonl" in refused(protocols=[{"name": "mmlu_5shot_four", "sources": ["data-dir"]}])


def test_pruning_alone_needs_no_benchmark_data(bench: Bench) -> None:
    bench.configure(protocols=[{"name": "mmlu_5shot_four", "sources": ["data-dir"]}])
    assert bench("prune") == 0


def test_evaluate_looks_before_it_loads(bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.models import loading
    from prunebench.run_all import main

    monkeypatch.setattr(loading, "load_model", lambda spec: pytest.fail("the model was loaded"))
    assert main(["evaluate", "--model", str(bench.model), "--protocol", "reading", "--data", str(bench.data), "--plain"]) == 2
    assert "No data for task 'race_high'" in capsys.readouterr().err
