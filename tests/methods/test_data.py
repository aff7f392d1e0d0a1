"""Calibration samples and training text."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from prunebench.methods.data import CalibrationConfig, PruningData, TrainingConfig, build_pruning_data
from prunebench.methods.data.contamination import EvaluationIndex
from prunebench.models.errors import BadInput

TEXTS = [" ".join(f"d{i}w{j}" for j in range(40 + i)) for i in range(30)]
ITEM = " ".join(f"item{j}" for j in range(30))
INSTRUCTIONS = [{"instruction": f"do i{i} now", "input": "x" if i % 2 else "", "output": f"done r{i} well"} for i in range(40)]


@pytest.fixture
def tokenizer(word_tokenizer):
    prompts = "Below is an instruction that describes a task. Write a response that appropriately completes the request. paired with"
    return word_tokenizer([*TEXTS, ITEM, prompts, *(" ".join(row.values()) for row in INSTRUCTIONS)])


@pytest.fixture
def data_dir(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("calibration/mine.jsonl", [{"text": text} for text in TEXTS])
    write("calibration/wikitext2_train_small.jsonl", [{"text": text} for text in TEXTS])
    write("calibration/alpaca.jsonl", INSTRUCTIONS)
    write("calibration/leaky.jsonl", [{"text": text} for text in TEXTS] + [{"text": f"so it says {ITEM} at last and more of it"}])
    write("calibration/benchmark.jsonl", [{"text": f"{ITEM} a{i} b c d e f g h i j k l m n"} for i in range(30)])
    write("piqa/validation.jsonl", [{"goal": ITEM, "sol1": "short", "label": 0}])
    return tmp_path


def build(tokenizer, data_dir, source="mine", num_samples=8, seq_len=16, seed=0):
    return build_pruning_data(CalibrationConfig(source=source, num_samples=num_samples, seq_len=seq_len), tokenizer, seed, data_dir)


@pytest.mark.parametrize("source", ["mine", "wikitext2", "alpaca"])
def test_samples_have_the_asked_shape_and_depend_on_the_seed_only(tokenizer, data_dir, source):
    first, again, other = (build(tokenizer, data_dir, source, seed=seed) for seed in (0, 0, 1))
    assert first.calibration.shape == (8, 16)
    assert first.calibration.dtype == torch.int64
    assert torch.equal(first.calibration, again.calibration)
    assert first.sha256 == again.sha256 != other.sha256


def test_more_samples_than_documents_are_cut_without_overlap(tokenizer, data_dir):
    data = build(tokenizer, data_dir, num_samples=60, seq_len=16)
    assert len(set(data.calibration.flatten().tolist())) == 60 * 16  # every word of TEXTS occurs once


@pytest.mark.parametrize("source", ["mine", "wikitext2"])
def test_too_little_text_is_refused_in_one_sentence(tokenizer, data_dir, source):
    with pytest.raises(BadInput, match=r"gives \d+ samples of 64 tokens, 100 are asked for"):
        build(tokenizer, data_dir, source, num_samples=100, seq_len=64)


def test_samples_longer_than_every_document_are_refused(tokenizer, data_dir):
    with pytest.raises(BadInput, match="gives 0 samples of 200 tokens"):
        build(tokenizer, data_dir, seq_len=200)


def test_a_document_that_contains_an_evaluation_item_is_left_out(tokenizer, data_dir):
    data = build(tokenizer, data_dir, "leaky", num_samples=31, seq_len=16)
    assert "1 documents with evaluation items left out" in data.description
    assert not set(data.calibration.flatten().tolist()) & set(tokenizer(ITEM)["input_ids"])


def test_a_source_full_of_evaluation_items_is_refused(tokenizer, data_dir):
    with pytest.raises(BadInput, match=r"'benchmark' contains evaluation items: 30 of 30 .* piqa/validation.jsonl, line 1"):
        build(tokenizer, data_dir, "benchmark")


def test_contamination_ignores_case_and_punctuation_and_shared_short_runs():
    index = EvaluationIndex.of([("item", ITEM)])
    assert index.item_in(ITEM.upper().replace(" ", ", ")) == "item"
    assert index.item_in(" ".join(ITEM.split()[:12]) + " other words") is None
    assert index.item_in("") is None
    assert EvaluationIndex.of([]).item_in(ITEM) is None


def test_an_excerpt_of_a_long_evaluation_text_is_found():
    page = " ".join(f"page{j}" for j in range(5000))
    assert EvaluationIndex.of([("page", page)]).item_in(" ".join(page.split()[1000:1080])) == "page"


def test_unknown_or_absent_sources_are_refused(tokenizer, data_dir, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match="'nope' is unknown"):
        build(tokenizer, data_dir, "nope")
    with pytest.raises(BadInput, match="'dolly' is on the hub, but HF_HUB_OFFLINE is set"):
        build(tokenizer, data_dir, "dolly")
    with pytest.raises(BadInput, match="is not a name"):
        build(tokenizer, data_dir, "../mine")


@pytest.mark.parametrize(("line", "message"), [("{", "line 1 is not JSON"), ("[1]", "is not a JSON object"), ('{"a": 1}', "needs 'text'")])
def test_malformed_rows_are_named(tokenizer, data_dir, line, message):
    (data_dir / "calibration/bad.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=message):
        build(tokenizer, data_dir, "bad")


def test_a_config_refuses_unknown_keys_and_ranges():
    for wrong in ({"dataset": "c4"}, {"num_samples": 0}, {"seq_len": 4}, {"source": ""}):
        with pytest.raises(ValidationError):
            CalibrationConfig(**wrong)


def test_training_text_masks_the_prompt_and_holds_out_validation(tokenizer, data_dir):
    data = build(tokenizer, data_dir)
    text = data.training_text(TrainingConfig(source="alpaca", max_len=64))
    assert len(text.validation) == 4
    assert len(text.train) == 36
    example = text.train[0]
    assert (example.labels[: example.prompt_tokens] == -100).all()
    assert example.labels[-1] == tokenizer.eos_token_id
    assert "done" in tokenizer.decode(example.tokens[example.prompt_tokens :])
    again = data.training_text(TrainingConfig(source="alpaca", max_len=64))
    assert text.sha256 == again.sha256


def test_plain_training_text_is_cut_and_carries_loss_everywhere(tokenizer, data_dir):
    text = build(tokenizer, data_dir).training_text(TrainingConfig(source="mine", max_len=16))
    assert max(len(example.tokens) for example in text.train) == 16
    assert all(example.prompt_tokens == 0 for example in text.train)


def test_data_without_calibration_or_tokenizer_say_so():
    with pytest.raises(BadInput, match="flap needs calibration text"):
        PruningData.none().require_calibration("flap")
    with pytest.raises(BadInput, match="needs a tokenizer"):
        PruningData.none().training_text(TrainingConfig())


def test_drawing_leaves_the_global_random_state_alone(tokenizer, data_dir):
    before = torch.get_rng_state()
    build(tokenizer, data_dir)
    assert torch.equal(before, torch.get_rng_state())
