"""What stands at the start and the end of calibration samples and training examples."""

from __future__ import annotations

import json

import pytest

from prunebench.methods.data import CalibrationConfig, TrainingConfig, build_pruning_data

TEXTS = [" ".join(f"d{i}w{j}" for j in range(40 + i)) for i in range(30)]
INSTRUCTIONS = [{"instruction": f"do i{i} now", "input": "x" if i % 2 else "", "output": f"done r{i} well"} for i in range(40)]
PROMPTS = "Below is an instruction that describes a task. Write a response that appropriately completes the request. paired with"

# Hashes of tokens as they were before BOS became a choice: a tokenizer that adds none still gives the same.
CALIBRATION_HASHES = {
    "mine": "3b90d7cd2e4da5c683e4ab8d0a18916d5cc9e406a04501d836eb7a67b9dec617",
    ("mine", 60): "3db15a88e5496ce6fd5776b63392a3bd937d246c6c9e0e744d421698bb98f7c6",
    "wikitext2": "6834aebeba0feb53454a728ffc0da507d0356e5f79c17a594bc56ed7467ab72f",
    ("wikitext2", 60): "4d738ef414d7861b43948e433f788804cf0e899e330549d9b04bec6310e6b8cc",
    "alpaca": "2fbf9b009c9f843bf7dbc8e67c599831df4245ce44abbcf22eb4ec1a6b93c828",
    ("alpaca", 60): "0978fe6f57cf97dac15835560e44ebd9846359ec3fb8f4c1e9c933483425e2e4",
}
TRAINING_HASHES = {
    "mine": "42342a5415eb1fbb66ad6e27f6d0fd3b7d68523e4d9b00921e38797c4f637dad",
    "wikitext2": "42342a5415eb1fbb66ad6e27f6d0fd3b7d68523e4d9b00921e38797c4f637dad",
    "alpaca": "a9d35814c39930814aae3476b80b3cc57c9041c06a6145401bfce73ba3c3a147",
}


@pytest.fixture
def tokenizer(word_tokenizer):
    return word_tokenizer([*TEXTS, PROMPTS, *(" ".join(row.values()) for row in INSTRUCTIONS)])


@pytest.fixture
def data_dir(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("calibration/mine.jsonl", [{"text": text} for text in TEXTS])
    write("calibration/wikitext2_train_small.jsonl", [{"text": text} for text in TEXTS])
    write("calibration/alpaca.jsonl", INSTRUCTIONS)
    write("piqa/validation.jsonl", [{"goal": "how", "sol1": "so", "label": 0}])
    return tmp_path


def build(tokenizer, data_dir, source="mine", **settings):
    config = CalibrationConfig(**({"source": source, "num_samples": 8, "seq_len": 16} | settings))
    return build_pruning_data(config, tokenizer, 3, data_dir)


@pytest.mark.parametrize("source", ["mine", "wikitext2", "alpaca"])
def test_a_tokenizer_without_bos_gives_the_samples_that_it_always_gave(tokenizer, data_dir, source):
    assert build(tokenizer, data_dir, source).sha256 == CALIBRATION_HASHES[source]
    assert build(tokenizer, data_dir, source, num_samples=60, seq_len=8).sha256 == CALIBRATION_HASHES[source, 60]
    assert build(tokenizer, data_dir).training_text(TrainingConfig(source=source, max_len=48)).sha256 == TRAINING_HASHES[source]
