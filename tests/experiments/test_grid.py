"""A whole grid through the command line: records, skipping, determinism, stages apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from prunebench.leaderboard.record import read_records
from prunebench.models.masks import Masks
from tests.experiments.support import Bench, differences


def test_every_cell_leaves_a_record_that_says_how_it_came_to_be(finished: Bench) -> None:
    records, problems = read_records(finished.out)
    assert not problems
    assert {r.run.method for r in records} == {"dense", "magnitude", "random"}
    for record in records:
        assert record.run.status == "done"
        assert record.metrics.scores[0].tasks[0].n == 6
        assert record.provenance.model["sha256"]
        assert record.provenance.packages["torch"]
        assert [stage.name for stage in record.run.stages][-1] == "evaluate"
        assert all(stage.seconds > 0 and stage.peak_memory_bytes for stage in record.run.stages)
        assert record.run.command.endswith(f"--only {record.run.cell_id}")


def test_a_pruned_row_counts_what_its_checkpoint_holds(finished: Bench) -> None:
    record = finished.record("magnitude")
    model = AutoModelForCausalLM.from_pretrained(finished.cell("magnitude") / "checkpoint", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == record["metrics"]["params_total"]
    assert record["metrics"]["achieved_sparsity_blocks"] == pytest.approx(0.3, abs=0.005)
    assert len(record["metrics"]["shapes"]) == 3
    assert record["provenance"]["masks_sha256"]


def test_per_document_outcomes_lie_beside_the_record(finished: Bench) -> None:
    record = finished.record("random")
    name = record["metrics"]["scores"][0]["tasks"][0]["samples_file"]
    assert (finished.cell("random") / name).is_file()


def test_a_finished_grid_is_not_run_again(copy_of_finished: Bench) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy_of_finished.record_paths()}
    assert copy_of_finished("run") == 0
    assert {path: path.stat().st_mtime_ns for path in copy_of_finished.record_paths()} == before


def test_two_runs_differ_only_in_times(finished: Bench) -> None:
    again = object.__new__(Bench)
    again.__dict__.update(finished.__dict__)
    again.out = finished.folder / "again"
    assert again("run") == 0
    assert not differences(again.records(), finished.records())
    for method in ("magnitude", "random"):
        assert Masks.load(again.cell(method) / "masks.safetensors") == Masks.load(finished.cell(method) / "masks.safetensors")


def test_a_new_protocol_setting_reuses_the_pruned_checkpoint(copy_of_finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy_of_finished("run", "--limit", "3") == 0
    said = capsys.readouterr().err
    assert "prune taken from cell" in said
    assert "slice taken from cell" in said
    assert len(copy_of_finished.record_paths()) == 6


def test_prune_here_and_evaluate_elsewhere_give_the_record_of_one_run(finished: Bench, tmp_path: Path) -> None:
    there = object.__new__(Bench)
    there.__dict__.update(finished.__dict__)
    there.out = tmp_path / "gpu-machine"
    assert there("prune") == 0
    assert there.record_paths() == []
    shutil.move(there.out, tmp_path / "other-machine")
    there.out = tmp_path / "other-machine"
    assert there("evaluate") == 0
    assert not differences(there.records(), finished.records())


def test_evaluate_refuses_cells_without_a_checkpoint(bench: Bench) -> None:
    assert bench("evaluate", "--set", "grid.dense=false") == 1
    assert "run the verb prune" in bench.record("magnitude")["run"]["reason"]


def test_evaluate_scores_any_checkpoint_and_prints_a_table(finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    from prunebench.run_all import main

    checkpoint = str(finished.cell("random") / "checkpoint")
    options = ["--model", checkpoint, "--protocol", "perplexity_passages", "--data", str(finished.data), "--plain"]
    assert main(["evaluate", *options]) == 0
    assert "passages" in capsys.readouterr().out


def test_options_of_the_evaluation_reach_the_record(bench: Bench) -> None:
    assert bench("run", "--set", "evaluation.bos=never") == 0
    (score,) = bench.record("magnitude")["metrics"]["scores"]
    assert score["definition"].endswith("Here: documents without BOS.")


def test_an_option_that_the_tokenizer_cannot_follow_stops_a_cell_before_it_prunes(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the tokenizer isn't at hand when the grid is planned."""
    monkeypatch.setattr("prunebench.experiments.checks.lengths.load_tokenizer", lambda spec: None)
    assert bench("run", "--set", "evaluation.chat_template=true") == 2
    assert "the tokenizer has no chat template" in "".join(capsys.readouterr())
    assert not list(bench.out.rglob("masks.safetensors"))


def test_protocols_of_a_cell_are_scored_in_one_call_and_as_if_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.evaluation import runner

    read: list[str] = []
    real = runner.model_fingerprint
    monkeypatch.setattr(runner, "model_fingerprint", lambda *args: read.append("") or real(*args))
    entries = [{"name": "perplexity_passages", "sources": ["data-dir"]}, {"name": "commonsense_extra", "limit": 2}]

    def scores(protocols: list[dict[str, Any]]) -> list[dict[str, Any]]:
        bench.configure(protocols=protocols, grid={"dense": False})
        assert bench("run") == 0
        found: list[dict[str, Any]] = bench.record("magnitude")["metrics"]["scores"]
        shutil.rmtree(bench.out)
        return found

    together = scores(entries)
    assert len(read) == 1
    assert [score["tasks"] for score in together] == [score["tasks"] for entry in entries for score in scores([entry])]


def test_status_counts_what_is_done_and_left(finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert finished("status", "--set", "grid.seed=[0,1]") == 0
    said = capsys.readouterr().out
    assert "3 done, 2 left" in said


def test_plan_writes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(bench.folder.rglob("*"))
    assert bench("plan") == 0
    assert sorted(bench.folder.rglob("*")) == before
    assert "2 cells, about" in capsys.readouterr().out


def test_export_copies_a_whole_checkpoint_once(finished: Bench, tmp_path: Path) -> None:
    cell_id = finished.cell("magnitude").name
    assert finished("export", "--only", cell_id, "--to", str(tmp_path / "mine")) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "mine", trust_remote_code=True)
    assert finished("export", "--only", cell_id, "--to", str(tmp_path / "mine")) == 2


def test_checkpoints_can_be_given_up_once_the_record_is_written(bench: Bench) -> None:
    assert bench("run", "--set", "run.keep_checkpoints=false") == 0
    assert not (bench.cell("magnitude") / "checkpoint").exists()
    assert (bench.cell("magnitude") / "masks.safetensors").exists()
    assert bench("run", "--set", "run.keep_checkpoints=false") == 0


def test_clean_deletes_leftovers_and_on_request_checkpoints(copy_of_finished: Bench) -> None:
    cell = copy_of_finished.cell("magnitude")
    (cell / ".tmp-slice-1234").mkdir()
    assert copy_of_finished("clean") == 0
    assert not (cell / ".tmp-slice-1234").exists()
    assert (cell / "checkpoint").exists()
    assert copy_of_finished("clean", "--checkpoints") == 0
    assert not (cell / "checkpoint").exists()
    assert copy_of_finished("status") == 0
    assert copy_of_finished("clean", "--all") == 0
    assert copy_of_finished.record_paths() == []


def test_the_cell_folder_holds_no_pickle_and_nothing_half_written(finished: Bench) -> None:
    names = [path.name for path in finished.out.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth", ".tmp")) or name.startswith(".tmp")]
    config = json.loads((finished.cell("random") / "cell.json").read_text())
    assert config["method"] == "random"
