"""Samples, training text and prompts that a model can't take are refused where they meet it, also without a grid."""

from __future__ import annotations

import json

import pytest
import torch

from prunebench.methods.compresso.prompts import prompt_text
from prunebench.methods.compresso.pruner import Compresso, CompressoConfig
from prunebench.methods.data import PruningData, TrainingConfig
from prunebench.methods.nuteprune.pruner import NutePrune, NutePruneConfig
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.recovery.lora import LoraRecoveryConfig, recover_lora
from prunebench.methods.registry import PRUNERS, get_pruner
from prunebench.models.budget import Budget
from prunebench.models.errors import BadInput
from prunebench.models.tiny import random_tokens, tiny_model

CONTEXT = 32
READS_CALIBRATION = sorted(name for name in PRUNERS.built_in if name != "slicegpt" and get_pruner(name).needs_calibration)
LONG = "calibration.seq_len is 33, but the model has a context of 32 tokens; give at most 32"


@pytest.fixture
def run(tmp_path):
    return Run(seed=0, device=torch.device("cpu"), folder=tmp_path)


@pytest.fixture
def data(tmp_path, word_tokenizer):
    """A source 'mine' of one text of 60 words and many of 20; 21 words are known."""
    (tmp_path / "calibration").mkdir()
    texts = [" ".join(f"w{(i + j) % 20}" for j in range(60 if i == 0 else 20)) for i in range(40)]
    (tmp_path / "calibration/mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_text(json.dumps({"goal": "g"}) + "\n")
    return PruningData(random_tokens(8, 16), "random tokens", word_tokenizer([*texts, "be kind"]), 0, tmp_path)


@pytest.mark.parametrize("name", READS_CALIBRATION)
def test_no_method_takes_samples_that_are_longer_than_the_context(name, run):
    pruner = get_pruner(name)
    samples = PruningData(random_tokens(4, CONTEXT + 1), "random tokens")
    with pytest.raises(BadInput, match=LONG):
        pruner(pruner.quick_config()).prune(tiny_model("llama", max_position_embeddings=CONTEXT), Budget(0.3), samples, run)


@pytest.mark.parametrize("name", READS_CALIBRATION)
def test_no_method_takes_ids_beyond_the_embedding(name, run):
    pruner = get_pruner(name)
    samples = PruningData(random_tokens(4, 16) + 100, "random tokens")
    with pytest.raises(BadInput, match=r"the calibration samples hold the token id 2\d\d, but the model's embedding has 128 rows"):
        pruner(pruner.quick_config()).prune(tiny_model("llama"), Budget(0.3), samples, run)


@pytest.mark.parametrize("pruner", [Compresso, NutePrune])
def test_learning_methods_refuse_text_that_is_longer_than_the_context(pruner, data, run):
    model = tiny_model("llama", max_position_embeddings=CONTEXT)
    for source in ("mine", "self"):
        config = pruner.quick_config().model_copy(update={"text": TrainingConfig(source=source, max_len=40)})
        with pytest.raises(BadInput, match=r"text\.max_len\)? is 40, but the model has a context of 32 tokens"):
            pruner(config).prune(model, Budget(0.3), data, run)


def test_a_prompt_and_its_examples_must_fit_together(data, run, monkeypatch):
    monkeypatch.setattr("prunebench.methods.compresso.pruner.prompt_text", lambda name: "be kind" if name != "none" else "")
    model = tiny_model("llama", max_position_embeddings=CONTEXT)
    config = Compresso.quick_config().model_copy(update={"text": TrainingConfig(source="mine", max_len=CONTEXT), "prompt": "training"})
    with pytest.raises(BadInput, match=r"the prompt \(2 tokens\) \+ the text is 34, but the model has a context of 32 tokens"):
        Compresso(config).prune(model, Budget(0.3), data, run)
    Compresso(config.model_copy(update={"text": TrainingConfig(source="mine", max_len=CONTEXT - 2)})).prune(model, Budget(0.3), data, run)


def test_a_recovery_refuses_what_its_model_can_not_take(data, run):
    config = LoraRecoveryConfig(text=TrainingConfig(source="mine", max_len=64), token_budget=200)
    with pytest.raises(BadInput, match=r"a training example \(text\.max_len\) is 61, but the model has a context of 32 tokens"):
        recover_lora(tiny_model("llama", max_position_embeddings=CONTEXT), config, data, run)
    with pytest.raises(BadInput, match="the training examples hold the token id 24, but the model's embedding has 24 rows"):
        recover_lora(tiny_model("llama", vocab_size=24), config, data, run)


def test_rows_of_packed_examples_may_be_longer_than_the_context(data, run):
    config = LoraRecoveryConfig(text=TrainingConfig(source="mine", max_len=CONTEXT), token_budget=300, pack_tokens=4 * CONTEXT)
    assert recover_lora(tiny_model("llama", max_position_embeddings=CONTEXT), config, data, run).tokens <= 300


class _Inner(PrunerConfig):
    text: TrainingConfig = TrainingConfig(max_len=99)


class _PluginConfig(PrunerConfig):
    first: TrainingConfig = TrainingConfig(max_len=77)
    samples: TrainingConfig = TrainingConfig(source="calibration", max_len=5000)
    inner: _Inner = _Inner()
    absent: TrainingConfig | None = None


class _Plugin(Pruner[_PluginConfig]):
    Config = _PluginConfig

    def prune(self, model, budget, data, run):
        raise NotImplementedError


def no_prompt(prompt, bos):
    return 0


def test_every_method_says_how_long_its_sequences_are():
    assert _Plugin().lengths(128, no_prompt) == {"calibration.seq_len": 128, "first.max_len": 77, "inner.text.max_len": 99}
    assert get_pruner("magnitude")().lengths(128, no_prompt) == {}
    assert get_pruner("flap")().lengths(128, no_prompt) == {"calibration.seq_len": 128}


def test_compresso_counts_its_prompt_and_one_bos():
    def with_bos(prompt, bos):
        return len(prompt.split()) + (bos != "never")

    words = len(prompt_text("training").split())
    config = CompressoConfig(text=TrainingConfig(source="alpaca", max_len=100))
    assert Compresso(config).lengths(128, with_bos)["prompt + text.max_len"] == words + 100
    config = CompressoConfig(text=TrainingConfig(source="calibration"))
    assert Compresso(config).lengths(128, with_bos) == {"calibration.seq_len": 128, "prompt + calibration.seq_len": words + 128}
    assert "prompt + text.max_len" not in Compresso(CompressoConfig(prompt="none")).lengths(128, with_bos)


def test_nuteprune_counts_the_text_of_its_fine_tuning_where_there_is_one():
    assert NutePrune().lengths(8, no_prompt) == {"calibration.seq_len": 8, "text.max_len": 512, "finetune_text.max_len": 512}
    for settings in ({"finetune_epochs": 0}, {"lora_rank": 0}, {"finetune_text": None}):
        assert "finetune_text.max_len" not in NutePrune(NutePruneConfig(**settings)).lengths(8, no_prompt)
