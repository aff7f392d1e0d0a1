"""What stands at the start and the end of calibration samples and training examples."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from prunebench.methods.compresso.pruner import CompressoConfig, text_behind_prompt
from prunebench.methods.data import CalibrationConfig, PruningData, TrainingConfig, build_pruning_data
from prunebench.methods.learning.text.packing import Pack
from prunebench.methods.learning.text.source_text import text_to_learn
from prunebench.methods.pruner import Run
from prunebench.models.errors import BadInput
from prunebench.models.special_tokens import prompt_ids
from prunebench.models.tiny import tiny_model

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


BOS, EOS = 1, 2  # of the word tokenizer


def adding(tokenizer, template):
    """The tokenizer with a template of what it puts around a text, as LLaMA's ('<s> $A') has one."""
    fast = copy.deepcopy(tokenizer)
    fast.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<unk>", 0), ("<s>", BOS), ("</s>", EOS)])
    return fast


@pytest.mark.parametrize("source", ["mine", "wikitext2", "alpaca"])
@pytest.mark.parametrize(("template", "begin"), [("<s> $A", [1]), ("<s> $A </s>", [1]), ("<unk> <s> $A", [0, 1])])
def test_every_sample_begins_with_what_the_tokenizer_adds(tokenizer, data_dir, source, template, begin):
    data = build(adding(tokenizer, template), data_dir, source)
    assert data.calibration.shape == (8, 16)
    assert all(row.tolist()[: len(begin)] == begin for row in data.calibration)
    text = data.calibration[:, len(begin) :]
    assert not (text == BOS).any()
    if source != "alpaca":  # whose examples are joined by it
        assert not (text == EOS).any()
    assert data.bos_tokens == len(begin)
    assert "8 samples of 16 tokens with BOS" in data.description


def test_samples_with_bos_hold_the_same_documents_without_overlap(tokenizer, data_dir):
    data = build(adding(tokenizer, "<s> $A"), data_dir, num_samples=60)
    assert len(set(data.calibration[:, 1:].flatten().tolist())) == 60 * 15  # every word of TEXTS occurs once


def test_bos_can_be_asked_for_and_left_out(tokenizer, data_dir):
    plain = build(tokenizer, data_dir)
    assert "8 samples of 16 tokens without BOS" in plain.description
    assert torch.equal(build(adding(tokenizer, "<s> $A"), data_dir, bos="never").calibration, plain.calibration)
    asked = build(tokenizer, data_dir, bos="always")
    assert (asked.calibration[:, 0] == BOS).all()
    assert torch.equal(asked.calibration, build(adding(tokenizer, "<s> $A"), data_dir).calibration)


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize(("source", "max_len"), [("alpaca", 48), ("mine", 16)])
def test_training_examples_begin_with_bos_which_carries_no_loss(tokenizer, data_dir, template, source, max_len):
    text = build(adding(tokenizer, template), data_dir).training_text(TrainingConfig(source=source, max_len=max_len))
    assert text.bos_tokens == 1
    assert "with BOS" in text.description
    for example in (*text.train, *text.validation):
        assert example.tokens[0] == BOS
        assert not (example.tokens[1:] == BOS).any()
        assert example.labels[0] == -100
        assert len(example.tokens) <= max_len
    if source == "mine":
        assert text.longest == max_len
        assert text.train[0].labels[1] == text.train[0].tokens[1]


def test_bos_changes_nothing_else_of_an_instruction(tokenizer, data_dir):
    plain, text = (
        build(one, data_dir).training_text(TrainingConfig(source="alpaca", max_len=48)) for one in (tokenizer, adding(tokenizer, "<s> $A"))
    )
    assert "without BOS" in plain.description
    for bare, example in zip((*plain.train, *plain.validation), (*text.train, *text.validation), strict=True):
        assert example.tokens[1:].tolist() == bare.tokens.tolist()
        assert example.prompt_tokens == bare.prompt_tokens + 1
    assert text.without_bos().sha256 == plain.sha256


@pytest.mark.parametrize("template", ["$A", "$A </s>", "<s> $A </s>"])
def test_an_example_ends_with_one_end_of_text(tokenizer, data_dir, template):
    rows = [{**row, "output": row["output"] + (" </s>" if i % 3 == 0 else "")} for i, row in enumerate(INSTRUCTIONS)]
    (data_dir / "calibration/alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = build(adding(tokenizer, template), data_dir).training_text(TrainingConfig(source="alpaca", max_len=64))
    for example in (*text.train, *text.validation):
        assert (example.tokens == EOS).sum() == 1
        assert example.tokens[-1] == EOS


def test_a_bos_that_a_text_brings_is_not_doubled(tokenizer, data_dir):
    (data_dir / "calibration/own.jsonl").write_text("".join(json.dumps({"text": f"<s> {text}"}) + "\n" for text in TEXTS))
    data = build(adding(tokenizer, "<s> $A"), data_dir, "own", num_samples=60)
    assert (data.calibration[:, 0] == BOS).all()
    assert not (data.calibration[:, 1:] == BOS).any()
    for example in data.training_text(TrainingConfig(source="own", max_len=200)).train:
        assert (example.tokens == BOS).sum() == 1


def test_bos_always_needs_a_bos_token(tokenizer, data_dir):
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = None
    with pytest.raises(BadInput, match="bos is 'always', but the tokenizer has no BOS token"):
        build(bare, data_dir, bos="always")
    with pytest.raises(BadInput, match="no BOS token"):
        build(bare, data_dir).training_text(TrainingConfig(source="mine", bos="always"))


def run_in(folder):
    return Run(seed=0, device=torch.device("cpu"), folder=folder)


def test_calibration_samples_as_training_text_keep_their_bos(tokenizer, data_dir):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    data = build(adding(tokenizer, "<s> $A"), data_dir)
    text = text_to_learn(TrainingConfig(source="calibration"), 1, model, data, run_in(data_dir))
    assert [example.tokens.tolist() for example in text.train] == data.calibration.tolist()
    assert {example.prompt_tokens for example in text.train} == {1} == {text.bos_tokens}
    assert "with BOS" in text.description
    for words, bos, made in (("with BOS", "never", data), ("without BOS", "always", build(tokenizer, data_dir))):
        with pytest.raises(BadInput, match=f"text.bos is '{bos}', but the calibration samples .* are {words}"):
            text_to_learn(TrainingConfig(source="calibration", bos=bos), 1, model, made, run_in(data_dir))


@pytest.mark.parametrize(("template", "begin"), [("$A", []), ("<s> $A", [1]), ("<unk> <s> $A </s>", [0, 1])])
def test_what_a_model_writes_begins_with_bos_and_then_a_random_token(tokenizer, tmp_path, template, begin):
    model = tiny_model("llama")
    data = PruningData(torch.empty(0, 0, dtype=torch.int64), "none", adding(tokenizer, template))
    text = text_to_learn(TrainingConfig(source="self", max_len=12), 40, model, data, run_in(tmp_path))
    assert text.bos_tokens == len(begin)
    assert {len(example.tokens) for example in text.train} == {12}
    assert all(example.tokens[: len(begin)].tolist() == begin and example.prompt_tokens == len(begin) for example in text.train)
    assert len({int(example.tokens[len(begin)]) for example in text.train}) > 20
    written = torch.stack([example.tokens for example in text.train])
    with torch.no_grad():
        best = model(written).logits.argmax(-1)
    at = len(begin)
    assert torch.equal(best[:, at : at + 4], written[:, at + 1 : at + 5])  # the four tokens that are taken greedily, BOS seen
    assert ("with BOS" if begin else "without BOS") in text.description


def test_self_written_text_without_a_tokenizer_has_no_bos(tmp_path):
    model, data = tiny_model("llama"), PruningData.none()
    assert text_to_learn(TrainingConfig(source="self", max_len=12), 2, model, data, run_in(tmp_path)).bos_tokens == 0
    with pytest.raises(BadInput, match=r"text\.bos 'always' needs a tokenizer"):
        text_to_learn(TrainingConfig(source="self", max_len=12, bos="always"), 2, model, data, run_in(tmp_path))


@pytest.mark.parametrize(("template", "begin"), [("$A", []), ("<s> $A", [1]), ("<unk> <s> $A </s>", [0, 1])])
@pytest.mark.parametrize("source", ["alpaca", "mine", "calibration", "self"])
def test_bos_stands_before_a_prompt_and_not_again_behind_it(tokenizer, data_dir, monkeypatch, template, begin, source):
    monkeypatch.setattr("prunebench.methods.compresso.pruner.prompt_text", lambda name: "do done now" if name != "none" else "")
    data = build(adding(tokenizer, template), data_dir)
    model = tiny_model("llama", vocab_size=len(tokenizer))
    config = CompressoConfig(text=TrainingConfig(source=source, max_len=48), self_text_examples=4)
    text, prompt = text_behind_prompt(config, model, data, run_in(data_dir))
    assert prompt.tolist() == prompt_ids(data.tokenizer, "do done now") == [*begin, *tokenizer("do done now")["input_ids"]]
    alone, none = text_behind_prompt(config.model_copy(update={"prompt": "none"}), model, data, run_in(data_dir))
    assert none is None
    for behind, example in zip(text.train, alone.train, strict=True):
        assert [*begin, *behind.tokens.tolist()] == example.tokens.tolist()
        assert behind.prompt_tokens + len(begin) == example.prompt_tokens
    if source != "self":  # whose random tokens may be any
        row = Pack.after(prompt, text.train[:2]).tokens[0]
        assert int((row == BOS).sum()) == begin.count(BOS)
