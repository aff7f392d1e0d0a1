"""Protocols end to end on a tiny model: the harness's own numbers, limits, notes, resume, samples and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prunebench import evaluation
from prunebench.evaluation import KEPT, ProtocolRequest, TaskResult, evaluate, format_table, harness, known_protocols, runner
from prunebench.evaluation.aggregate import mean_estimate
from prunebench.evaluation.catalogue import known_tasks
from prunebench.evaluation.engine.engine import Engine
from prunebench.evaluation.sampling import allocate, chosen_indices
from prunebench.evaluation.sources import load_task_data
from prunebench.models.errors import BadInput
from tests.evaluation.conftest import byte_tokenizer, small_model

EMBEDDED = ("embedded",)


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model("llama", max_position_embeddings=8192)


def request(name: str, limit: int) -> ProtocolRequest:
    return ProtocolRequest(name=name, limit=limit, sources=EMBEDDED)


def write_piqa(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "piqa").mkdir(parents=True, exist_ok=True)
    (folder / "piqa" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


PIQA = [{"goal": f"open jar {i}", "sol1": f"turn lid {i}", "sol2": f"hit it {i} times", "label": i % 2} for i in range(12)]
PIQA_ONLY = "piqa_only"


@pytest.fixture
def piqa_only(monkeypatch: pytest.MonkeyPatch) -> str:
    """A protocol of one task, known for one test."""
    definition = {
        "name": PIQA_ONLY,
        "version": 1,
        "definition": "acc on PIQA.",
        "tasks": [{"task": "piqa", "shots": 0, "metric": "acc"}],
        "average": "mean_of_tasks",
    }
    known = {**known_protocols(), PIQA_ONLY: evaluation.Protocol(**definition)}
    monkeypatch.setattr("prunebench.evaluation.catalogue.known_protocols", lambda: known)
    return PIQA_ONLY


STOCK = [
    ("piqa", 0),
    ("hellaswag", 0),
    ("winogrande", 0),
    ("arc_easy", 0),
    ("openbookqa", 0),
    ("boolq", 0),
    ("social_iqa", 0),
    ("commonsense_qa", 0),
    ("copa", 0),
    ("sciq", 0),
    ("lambada_openai", 0),
    ("mmlu", 5),
    ("mmlu_cloze", 0),
]


def stock_task(monkeypatch: pytest.MonkeyPatch, name: str, shots: int, count: int) -> tuple[Any, list[Any]]:
    """The harness's task with its own template code, and the rows under it."""
    definition = known_tasks()[name]
    stratum = definition.all_strata[0]
    data = load_task_data(definition, stratum, EMBEDDED, None, shots)
    with monkeypatch.context() as patch:
        patch.setattr(harness, "_compile_templates", lambda task: None)
        return harness.build_task(definition, stratum, shots, data.rows[:count], data.fewshot), data.rows[:count]


@pytest.mark.parametrize(("name", "shots"), STOCK)
def test_prompts_are_the_harness_own(monkeypatch: pytest.MonkeyPatch, name: str, shots: int) -> None:
    stock, rows = stock_task(monkeypatch, name, shots, 6)
    stock.build_all_requests()
    definition = known_tasks()[name]
    stratum = definition.all_strata[0]
    fewshot = load_task_data(definition, stratum, EMBEDDED, None, shots).fewshot
    groups = harness.build_requests(harness.build_task(definition, stratum, shots, rows, fewshot))
    assert [i.args for group in groups for i in group] == [i.args for i in stock.instances]
    assert len(fewshot) == (5 if shots else 0)


@pytest.mark.parametrize(("name", "shots"), STOCK)
def test_metrics_are_what_the_harness_reports_with_hf(
    monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: Any, name: str, shots: int
) -> None:
    from lm_eval.evaluator import evaluate as harness_evaluate
    from lm_eval.models.huggingface import HFLM

    count = 4
    stock, _ = stock_task(monkeypatch, name, shots, count)
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    expected = harness_evaluate(backend, {stock.task_name: stock}, bootstrap_iters=10)["results"][stock.task_name]
    definition = known_tasks()[name]
    stratum = definition.all_strata[0]
    run = runner._Run(model, tokenizer, None, 0, None, None, None, None)
    data = load_task_data(definition, stratum, EMBEDDED, None, shots)
    entry = evaluation.catalogue.ProtocolTask(task=name, shots=shots, metric="acc")
    piece = runner._Piece(stratum, data, list(range(count)), "key")
    (part,) = run.parts(definition, entry, [piece], [], None)
    for metric in part.outcomes[0].metrics:
        if metric == "perplexity":
            continue
        ours = mean_estimate([outcome.metrics[metric] for outcome in part.outcomes])
        assert ours.value == pytest.approx(expected[f"{metric},none"])
        if ours.stderr and metric in ("acc", "acc_norm"):
            assert ours.stderr == pytest.approx(expected[f"{metric}_stderr,none"])


def test_mmlu_requests_are_built_at_a_thousand_documents_a_second() -> None:
    import time

    definition = known_tasks()["mmlu"]
    data = load_task_data(definition, "marketing", EMBEDDED, None, 5)
    task = harness.build_task(definition, "marketing", 5, data.rows, data.fewshot)
    started = time.process_time()
    groups = harness.build_requests(task)
    assert len(groups) / (time.process_time() - started) > 1000


def test_examples_are_dropped_one_by_one_while_a_prompt_is_too_long() -> None:
    definition = known_tasks()["mmlu_generated"]
    data = load_task_data(definition, "marketing", EMBEDDED, None, 5)
    task = harness.build_task(definition, "marketing", 5, data.rows[:3], data.fewshot)
    (group, *_) = harness.build_requests(task, lambda text: text.count("Answer:") <= 3)
    context = group[0].args[0]
    assert context.count("Answer:") == 3
    assert context.startswith("The following are multiple choice questions")
    assert data.fewshot[1]["question"].strip() in context
    assert data.fewshot[2]["question"].strip() not in context


@pytest.mark.parametrize(
    "name",
    [
        "commonsense_llm_pruner",
        "commonsense_compresso",
        "commonsense_extra",
        "reading_extra",
        "mmlu_5shot_four",
        "perplexity_passages",
        "basic_skills",
    ],
)
def test_embedded_protocols_run_with_no_hub_and_no_folder(name: str, model: Any, tokenizer: Any) -> None:
    (result,) = evaluate(model, tokenizer, [request(name, 4)])
    for task in result.tasks:
        assert task.source == "embedded"
        assert math.isfinite(task.value)
        assert task.n >= 4
        assert len(task.source_hash) == 64
        assert task.n < task.n_available
        assert any("drawn with seed 0" in note for note in task.notes)
    if result.mean is not None:
        assert result.mean.value == pytest.approx(sum(task.value for task in result.tasks) / len(result.tasks))
        assert result.margin == pytest.approx(result.mean.value - (result.chance or 0))
    table = format_table([result])
    assert result.definition in table
    assert all(task.task in table for task in result.tasks)


def test_compresso_without_storycloze_has_another_name_and_says_so(model: Any, tokenizer: Any) -> None:
    (result,) = evaluate(model, tokenizer, [request("commonsense_compresso", 2)])
    assert result.protocol == "commonsense_compresso_six"
    assert len(result.tasks) == 6
    assert "storycloze_2018 left out" in result.tasks[0].notes[0]


def test_embedded_validation_splits_are_named(model: Any, tokenizer: Any) -> None:
    (result,) = evaluate(model, tokenizer, [request("commonsense_llm_pruner", 2)])
    arc = next(task for task in result.tasks if task.task == "arc_easy")
    assert arc.split == "validation"
    assert any("not the test split" in note for note in arc.notes)


def test_a_folder_of_bbh_and_race_runs_the_generated_and_reading_protocols(
    tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunebench.evaluation.engine.engine.DEFAULT_NEW_TOKENS", 6)
    (tmp_path / "bbh").mkdir()
    for stratum in known_tasks()["bbh_direct"].all_strata:
        rows = [{"input": f"{stratum} {i}", "target": "Yes" if i % 3 else "No"} for i in range(6)]
        (tmp_path / "bbh" / f"{stratum}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    direct, compresso = evaluate(model, tokenizer, ["bbh_3shot_direct", "bbh_generative_compresso"], data_dir=tmp_path, limit=27)
    assert (direct.tasks[0].n, direct.tasks[0].n_available) == (27, 27 * 6)
    assert (compresso.tasks[0].n, compresso.tasks[0].n_available) == (27, 27 * 3)
    assert direct.chance == pytest.approx(4 / 6)
    assert direct.tasks[0].stderr is not None
    assert f"exact_match[{known_tasks()['bbh_direct'].all_strata[0]}]" in direct.tasks[0].all_metrics


def test_a_limit_is_spread_over_subjects_and_equal_for_every_model(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow.parquet as pq

    ids = []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        other = small_model("llama", seed=seed, max_position_embeddings=8192)
        (result,) = evaluate(other, tokenizer, [request("mmlu_5shot_four", 8)], out_dir=out)
        ids.append(pq.read_table(out / str(result.tasks[0].samples_file)).column("item_id").to_pylist())
    assert ids[0] == ids[1]
    assert len({item.split(":")[0] for item in ids[0]}) == 4


def test_samples_hold_ids_choices_and_outcomes(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    import pyarrow.parquet as pq

    (result,) = evaluate(model, tokenizer, [request("commonsense_llm_pruner", 3)], out_dir=tmp_path)
    hellaswag = next(task for task in result.tasks if task.task == "hellaswag")
    table = pq.read_table(tmp_path / str(hellaswag.samples_file)).to_pydict()
    assert len(table["item_id"]) == 3
    assert [len(choices) for choices in table["choice_loglikelihoods"]] == [4, 4, 4]
    assert sum(table["acc_norm"]) / 3 == pytest.approx(hellaswag.value)


def test_a_cut_run_goes_on_where_it_stopped(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    class Cut(Exception):
        pass

    def cut(label: str, done: int, total: int) -> None:
        if label.endswith("/hellaswag"):
            raise Cut

    wanted = [request("commonsense_llm_pruner", 3)]
    with pytest.raises(Cut):
        evaluate(model, tokenizer, wanted, out_dir=tmp_path, progress=cut)
    kept = {path.name for path in (tmp_path / "parts").iterdir()}
    assert len(kept) >= 2
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    (resumed,) = evaluate(model, tokenizer, wanted, out_dir=tmp_path)
    told = [task.notes[-1] == KEPT for task in resumed.tasks]
    assert told[0]
    assert not told[-1]
    assert all((tmp_path / "parts" / name).stat().st_mtime_ns == stamp for name, stamp in times.items())
    (fresh,) = evaluate(model, tokenizer, wanted)
    for task in (*resumed.tasks, *fresh.tasks):
        task.samples_file = None
    assert without_kept(resumed.tasks) == fresh.tasks


def without_kept(tasks: list[TaskResult]) -> list[TaskResult]:
    return [task.model_copy(update={"notes": [note for note in task.notes if not note.endswith(KEPT)]}) for task in tasks]


def test_items_kept_in_part_are_counted(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    wanted = [request("mmlu_5shot_four", 12)]
    (first,) = evaluate(model, tokenizer, wanted, out_dir=tmp_path)
    assert not any(note.endswith(KEPT) for note in first.tasks[0].notes)
    lost = next(path for path in (tmp_path / "parts").iterdir())
    count = 12 - len(json.loads(lost.read_text())["outcomes"])
    lost.unlink()
    (second,) = evaluate(model, tokenizer, wanted, out_dir=tmp_path)
    assert f"{count} of 12 items {KEPT}" in second.tasks[0].notes
    assert without_kept(second.tasks) == first.tasks


def test_what_this_call_computed_itself_is_not_called_kept(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    small, whole = evaluate(model, tokenizer, [request("commonsense_small", 3), request("commonsense_llm_pruner", 3)], out_dir=tmp_path)
    assert {task.task for task in small.tasks} & {task.task for task in whole.tasks}
    assert not any(note.endswith(KEPT) for task in (*small.tasks, *whole.tasks) for note in task.notes)


def test_weights_are_read_once_a_call_and_only_where_outcomes_are_kept(
    tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    real = runner.model_fingerprint
    monkeypatch.setattr(runner, "model_fingerprint", lambda *args: calls.append(args) or real(*args))
    wanted = [request("perplexity_passages", 3), request("commonsense_small", 2)]
    evaluate(model, tokenizer, wanted)
    assert not calls
    evaluate(model, tokenizer, wanted, out_dir=tmp_path)
    assert len(calls) == 1


def test_items_whose_choices_all_tie_are_counted(tmp_path: Path, piqa_only: str) -> None:
    uniform = small_model("llama", max_position_embeddings=512)
    uniform.lm_head.weight.data.zero_()
    rows = [{"goal": "open", "sol1": "cdef", "sol2": "bcde" if index % 3 else "bcdef", "label": 0} for index in range(12)]
    (result,) = evaluate(uniform, byte_tokenizer(), [piqa_only], data_dir=write_piqa(tmp_path, rows))
    assert "8 of 12 items gave all choices one score" in result.tasks[0].notes


def test_finished_parts_need_no_model_pass(tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [request("mmlu_5shot_four", 4), request("perplexity_passages", 3)]
    first = evaluate(model, tokenizer, wanted, out_dir=tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished part was run again")

    monkeypatch.setattr(Engine, "score", refuse)
    second = evaluate(model, tokenizer, wanted, out_dir=tmp_path)
    assert [r.tasks for r in first] == [without_kept(r.tasks) for r in second]
    assert all(task.notes[-1] == KEPT for r in second for task in r.tasks)


def test_another_model_or_prompt_does_not_take_kept_parts(tmp_path: Path, tokenizer: Any) -> None:
    wanted = [request("perplexity_passages", 3)]
    base = small_model("llama", max_position_embeddings=2048)
    changed = small_model("llama", max_position_embeddings=2048)
    changed.model.layers[0].mlp.down_proj.weight.data.mul_(-1.0)
    values = {
        evaluate(which, tokenizer, wanted, prompt=prompt, out_dir=tmp_path)[0].tasks[0].value
        for which, prompt in ((base, None), (changed, None), (base, "A prompt."))
    }
    assert len(values) == 3


def test_a_damaged_kept_part_is_computed_again(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    wanted = [request("perplexity_passages", 3)]
    first = evaluate(model, tokenizer, wanted, out_dir=tmp_path)
    for path in (tmp_path / "parts").iterdir():
        path.write_text(path.read_text()[:40])
    assert evaluate(model, tokenizer, wanted, out_dir=tmp_path)[0].tasks == first[0].tasks


PIECES = {
    "a masked tensor": lambda model, tokenizer: model.model.layers[1].mlp.down_proj.weight.data[:, 1::2].zero_(),
    "one entry": lambda model, tokenizer: model.lm_head.weight.data[100, 3].add_(0.5),
    "the rotary base": lambda model, tokenizer: model.model.rotary_emb.inv_freq.mul_(0.5),
    "an epsilon": lambda model, tokenizer: setattr(model.model.norm, "variance_epsilon", 0.5),
    "the tokenizer's BOS": lambda model, tokenizer: setattr(tokenizer, "bos_token", "</s>"),
}


@pytest.mark.parametrize("change", PIECES)
def test_a_change_anywhere_gets_scores_of_its_own(tmp_path: Path, change: str) -> None:
    wanted = [request("perplexity_passages", 3)]
    before = evaluate(small_model("llama"), byte_tokenizer(), wanted, out_dir=tmp_path)
    changed, tokenizer = small_model("llama"), byte_tokenizer()
    PIECES[change](changed, tokenizer)
    after = evaluate(changed, tokenizer, wanted, out_dir=tmp_path)
    fresh = evaluate(changed, tokenizer, wanted)
    assert after[0].tasks[0].value == fresh[0].tasks[0].value != before[0].tasks[0].value


OPTIONS: list[dict[str, Any]] = [{"bos": "never"}, {"bos": "always"}, {"prompt": "A prompt."}, {"chat_template": True}]


@pytest.mark.parametrize("options", OPTIONS)
def test_another_form_of_requests_gets_scores_of_its_own(tmp_path: Path, model: Any, options: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    wanted = [request("commonsense_extra", 3)]
    plain = evaluate(model, tokenizer, wanted, out_dir=tmp_path)
    other = evaluate(model, tokenizer, wanted, out_dir=tmp_path, **options)
    assert not any(note.endswith(KEPT) for task in other[0].tasks for note in task.notes)
    again = evaluate(model, tokenizer, wanted, out_dir=tmp_path, **options)
    assert without_kept(again[0].tasks) == other[0].tasks
    assert (plain[0].definition == other[0].definition) == ("prompt" in options)


def test_the_data_folder_comes_first(tmp_path: Path, model: Any, tokenizer: Any, piqa_only: str) -> None:
    (result,) = evaluate(model, tokenizer, [piqa_only], data_dir=write_piqa(tmp_path, PIQA))
    assert (result.tasks[0].source, result.tasks[0].n) == ("data-dir", 12)
    (result,) = evaluate(model, tokenizer, [ProtocolRequest(name=piqa_only, limit=3)], data_dir=tmp_path / "piqa")
    assert result.tasks[0].source == "embedded"


BAD_ROWS = [
    ({"goal": "g", "sol1": "a", "label": 0}, r"row 3: field 'sol2' is missing; it has goal, label, sol1"),
    ({"goal": "g", "sol1": "a", "sol2": "b", "label": 2}, r"row 3: field 'label' is 2; expected a whole number from 0"),
    ({"goal": "g", "sol1": "a", "sol2": " ", "label": 1}, r"row 3: field 'sol2' is empty"),
    ({"goal": "g", "sol1": "a", "sol2": 5, "label": 1}, r"row 3: field 'sol2' is int; expected text"),
    ({"goal": "g", "sol1": "a", "sol2": "b", "label": "1"}, r"field 'label' is '1'; expected a whole number"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_malformed_row_is_named(tmp_path: Path, model: Any, tokenizer: Any, piqa_only: str, row: dict[str, Any], message: str) -> None:
    folder = write_piqa(tmp_path, [*PIQA[:3], row])
    with pytest.raises(BadInput, match=message) as caught:
        evaluate(model, tokenizer, [piqa_only], data_dir=folder)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_not_json_is_named(tmp_path: Path, model: Any, tokenizer: Any, piqa_only: str) -> None:
    folder = write_piqa(tmp_path, PIQA[:2])
    with (folder / "piqa" / "validation.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(BadInput, match="line 3 is not JSON"):
        evaluate(model, tokenizer, [piqa_only], data_dir=folder)


def test_missing_data_says_what_to_do_before_anything_is_computed(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "score", lambda *_: pytest.fail("computed before all data was there"))
    with pytest.raises(BadInput, match=r"No data for task 'race_high'.*--data"):
        evaluate(model, tokenizer, [request("perplexity_passages", 2), request("reading", 2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocols": ["mmlu_5shots"]}, "Did you mean 'mmlu_5shot'"),
        ({"protocols": []}, "No protocol was given"),
        ({"protocols": ["reading"], "limit": 0}, "limit is 0"),
        ({"protocols": ["reading"], "data_dir": Path("no/such/folder")}, "Data folder 'no/such/folder' does not exist"),
        ({"protocols": ["mmlu_5shot_four"], "token_budget": 0, "limit": 4}, "token_budget is 0"),
        ({"protocols": ["reading"], "bos": "sometimes"}, "bos is 'sometimes'; give one of tokenizer, always, never"),
    ],
)
def test_bad_arguments_get_one_sentence(model: Any, tokenizer: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        evaluate(model, tokenizer, **arguments)


def test_nan_logits_name_task_and_item(tmp_path: Path, piqa_only: str) -> None:
    tokenizer = byte_tokenizer()
    broken = small_model("llama", max_position_embeddings=512)
    rows = [dict(row) for row in PIQA]
    rows[7]["sol2"] = "zebra"
    broken.model.embed_tokens.weight.data[tokenizer("z")["input_ids"][0]] = float("nan")
    with pytest.raises(evaluation.ScoringFailed, match=r"Task 'piqa', item 7: the model gave logits that are not finite"):
        evaluate(broken, tokenizer, [piqa_only], data_dir=write_piqa(tmp_path, rows))


def test_items_longer_than_the_context_are_counted_in_the_notes(tmp_path: Path, piqa_only: str) -> None:
    rows = [dict(row) for row in PIQA]
    rows[2]["goal"] = "far " * 40
    short = small_model("llama", max_position_embeddings=64)
    (result,) = evaluate(short, byte_tokenizer(), [piqa_only], data_dir=write_piqa(tmp_path, rows))
    assert result.tasks[0].truncated == 2
    assert "2 requests cut from the left to fit the model's context" in result.tasks[0].notes


def test_progress_reaches_the_end_of_every_task(model: Any, tokenizer: Any) -> None:
    seen: dict[str, tuple[int, int]] = {}
    evaluate(
        model,
        tokenizer,
        [request("commonsense_extra", 3), request("mmlu_5shot_four", 8)],
        progress=lambda label, done, total: seen.update({label: (done, total)}),
    )
    assert all(done == total for done, total in seen.values())
    assert set(seen) == {
        "commonsense_extra/social_iqa",
        "commonsense_extra/commonsense_qa",
        "commonsense_extra/copa",
        "mmlu_5shot_four/mmlu_four",
    }


def test_allocation_is_proportional_and_never_leaves_a_stratum_out() -> None:
    sizes = {"a": 100, "b": 10, "c": 1}
    assert allocate(sizes, None) == sizes
    assert allocate(sizes, 1000) == sizes
    assert allocate(sizes, 2) == {"a": 1, "b": 1, "c": 1}
    kept = allocate(sizes, 22)
    assert sum(kept.values()) == 22
    assert kept["a"] > kept["b"] >= kept["c"] == 1


def test_a_larger_limit_keeps_what_a_smaller_one_chose() -> None:
    small, large = (set(chosen_indices(100, n, 3, "piqa", "")) for n in (10, 40))
    assert small < large
    assert set(chosen_indices(100, 10, 4, "piqa", "")) != small


def test_efficiency_counts_what_it_ran(model: Any, tokenizer: Any) -> None:
    steps: list[tuple[str, int, int]] = []
    measured = evaluation.measure_efficiency(
        model, tokenizer, prompt_tokens=20, new_tokens=4, repeats=3, progress=lambda *step: steps.append(step)
    )
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert measured.macs_per_token == sum(m.weight.numel() for m in linear)
    assert measured.prefill_tokens_per_second > measured.decode_tokens_per_second > 0
    assert measured.latency_ms > measured.time_to_first_token_ms > 0
    assert measured.peak_memory_bytes > 10**6
    assert measured.repeats == 3
    assert steps[-1] == ("efficiency", 4, 4)


def test_efficiency_refuses_lengths_that_do_not_fit(model: Any, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="no more than 8192 tokens"):
        evaluation.measure_efficiency(model, tokenizer, prompt_tokens=9000)


def test_every_protocol_names_a_definition_a_version_and_known_tasks() -> None:
    for name, protocol in known_protocols().items():
        assert protocol.name == name
        assert protocol.definition.endswith(".")
        assert protocol.tasks
