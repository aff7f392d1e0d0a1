"""Texts and data that a grid names are looked for before anything runs."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from prunebench.evaluation.sources import hub_is_reachable
from prunebench.models.hub import OFFLINE_VARIABLES, dataset_problem
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
    [
        ("not JSON", "line 1 is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"a": 1}', "a row needs"),
        ("", "holds no text"),
        ('{"text": " "}\n' * 3, "holds no text"),
        ('{"text": "one"}\n' * 5000 + '{"text": "cut', "line 5001 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("1" * 10_000, "line 1 is not JSON"),
    ],
)
def test_a_calibration_file_that_can_not_be_read(bench: Bench, refused: Any, text: str, words: str) -> None:
    (bench.data / "calibration" / "mine.jsonl").write_text(text)
    assert words in refused(grid={"method": ["wanda_sp"]}, calibration={"source": "mine", "num_samples": 2, "seq_len": 8})


def test_a_calibration_file_that_is_a_folder(bench: Bench, refused: Any) -> None:
    (bench.data / "calibration" / "mine.jsonl").mkdir()
    assert "can't be read: Is a directory" in refused(grid={"method": ["wanda_sp"]}, calibration={"source": "mine", "num_samples": 2})


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"text": "fine"}\n{"text": ', "other/test.jsonl, line 2 of"), (b"\xff\xfe", "other/test.jsonl is not UTF-8 text")],
)
def test_evaluation_files_that_texts_are_compared_with(content: bytes, words: str, bench: Bench, refused: Any) -> None:
    (bench.data / "other").mkdir()
    (bench.data / "other" / "test.jsonl").write_bytes(content)
    assert words in refused(grid={"method": ["wanda_sp"]}, calibration={"source": "c4", "num_samples": 2, "seq_len": 8})
    bench.configure(grid={"method": ["magnitude"]})
    assert bench("validate") == 0, "magnitude reads no text, and no protocol reads that file"


def test_a_text_that_no_stage_reads_needs_its_name_alone(bench: Bench) -> None:
    settings = {"text": {"source": "calibration"}, "finetune_text": {"source": "dolly"}, "finetune_epochs": 0}
    calibration = {"source": "c4", "num_samples": 2, "seq_len": 8}
    bench.configure(grid={"method": [{"name": "nuteprune", "config": settings}], "basis": "blocks"}, calibration=calibration)
    assert bench("validate") == 0


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


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("lambada_openai/test.jsonl", '{"text": "fine"}\n{"txt": "not"}\n', "row 1: field 'text' is missing"),
        ("lambada_openai/test.jsonl", '{"text": "fine"}\nnot JSON\n', "line 2 is not JSON"),
        ("lambada_openai/test.jsonl", "", "has no rows"),
        ("piqa/validation.jsonl", json.dumps({"goal": "?", "sol1": "a", "sol2": "b", "label": 2}), "row 0: field 'label' is 2"),
    ],
)
def test_benchmark_data_that_can_not_be_scored(name: str, text: str, words: str, bench: Bench, refused: Any) -> None:
    (bench.data / name).write_text(text)
    protocol = "perplexity_passages" if name.startswith("lambada") else "commonsense_small"
    assert words in refused(protocols=[{"name": protocol, "sources": ["data-dir"]}])


def test_a_subject_that_a_file_lacks(bench: Bench, refused: Any) -> None:
    (bench.data / "mmlu").mkdir()
    row = {"question": "?", "subject": "astronomy", "choices": list("abcd"), "answer": 0}
    for name in ("test", "dev"):
        (bench.data / "mmlu" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    sentence = refused(protocols=[{"name": "mmlu_5shot_four", "sources": ["data-dir"]}])
    assert "protocol mmlu_5shot_four: No data for task 'mmlu_four'" in sentence
    assert "mmlu/test.jsonl has no rows for" in sentence


@pytest.mark.parametrize("package", ["lm_eval", "datasets"])
def test_an_evaluation_without_its_packages(package: str, bench: Bench, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert "install prunebench[eval]" in refused(grid={"method": ["magnitude"]})
    bench.configure()
    assert bench("prune") == 0, "pruning alone evaluates nothing"


def test_what_is_done_already_needs_nothing_more(copy_of_finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert copy_of_finished("validate") == 2
    assert copy_of_finished("run") == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"protocols": [{"name": "perplexity_passages", "sources": ["embedded"]}]},
        {"grid": {"method": ["wanda_sp"]}, "calibration": {"source": "embedded", "num_samples": 2, "seq_len": 8}},
    ],
)
def test_embedded_data_that_can_not_be_fetched_end_the_run_before_it_starts(
    changes: dict[str, Any], bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.folder / "cache").write_text("a file, where the cache's folder should be")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(bench.folder / "cache"))
    bench.configure(**changes)
    assert bench("validate") == 0, "nothing is fetched to validate"
    assert bench("run") == 2
    assert "set PRUNEBENCH_CACHE to a folder that can" in capsys.readouterr().err
    assert not bench.out.exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that has allenai/c4, and someone/gated for members only; the paths that it was asked for."""
    from huggingface_hub import constants

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/datasets/" in self.path:  # the client asks for something of its own, too
                asked.append(self.path)
            name = self.path.removeprefix("/api/datasets/").partition("?")[0].removesuffix("/auth-check")
            is_open = name == "allenai/c4" or (name == "someone/gated" and not self.path.endswith("/auth-check"))
            body = json.dumps({"id": name, "gated": "manual" if name == "someone/gated" else False}).encode() if is_open else b""
            self.send_response(200 if is_open else 403 if name == "someone/gated" else 404)
            if not is_open:
                self.send_header("X-Error-Code", "GatedRepo" if name == "someone/gated" else "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for variable in OFFLINE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    caches = (dataset_problem, hub_is_reachable)
    for cache in caches:
        cache.cache_clear()
    yield asked
    server.shutdown()
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("allenai/c4", None),
        ("someone/gated", "calibration source 'someone/gated' can't be had from the hub (GatedRepoError)"),
        ("someone/nothing", "calibration source 'someone/nothing' can't be had from the hub (RepositoryNotFoundError)"),
    ],
)
def test_the_hub_is_asked_for_a_text_and_sends_no_rows(
    source: str, words: str | None, bench: Bench, hub: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bench.configure(grid={"method": ["wanda_sp"]}, calibration={"source": source, "num_samples": 2, "seq_len": 8})
    assert bench("validate") == (0 if words is None else 2)
    assert (words or "") in capsys.readouterr().err
    assert {path.removesuffix("/auth-check") for path in hub} == {f"/api/datasets/{source}"}


def test_the_hub_is_asked_for_benchmark_data(bench: Bench, hub: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    bench.configure(protocols=[{"name": "perplexity_128", "sources": ["hub"]}])
    assert bench("validate") == 2
    assert "the hub did not give Salesforce/wikitext (RepositoryNotFoundError)" in capsys.readouterr().err
    assert hub == ["/api/datasets/Salesforce/wikitext"]


def test_pruning_alone_needs_no_benchmark_data(bench: Bench) -> None:
    bench.configure(protocols=[{"name": "mmlu_5shot_four", "sources": ["data-dir"]}])
    assert bench("prune") == 0


def test_evaluate_looks_before_it_loads(bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.models import loading
    from prunebench.run_all import main

    monkeypatch.setattr(loading, "load_model", lambda spec: pytest.fail("the model was loaded"))
    assert main(["evaluate", "--model", str(bench.model), "--protocol", "reading", "--data", str(bench.data), "--plain"]) == 2
    assert "No data for task 'race_high'" in capsys.readouterr().err
