"""The length of a model's context, and what is refused for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma3Config, GPT2Config, LlamaConfig, PreTrainedConfig

from prunebench.models.context import check_length, check_tokens, context_length
from prunebench.models.errors import BadInput
from prunebench.models.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (GPT2Config(n_positions=96), 96),
        (PreTrainedConfig.from_dict({"n_ctx": 512, "seq_length": 128}), 128),
        (PreTrainedConfig.from_dict({"max_sequence_length": 700, "max_position_embeddings": 0, "n_positions": None}), 700),
        (PreTrainedConfig.from_dict({"max_position_embeddings": 4096, "text_config": {"max_position_embeddings": 32}}), 32),
        (Gemma3Config(text_config={"max_position_embeddings": 48}), 48),
        (LlamaConfig(max_position_embeddings=8192, rope_scaling={"rope_type": "linear", "factor": 4.0}), 8192),
        (
            LlamaConfig(
                max_position_embeddings=131072,
                rope_scaling={
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            ),
            131072,
        ),
        (PreTrainedConfig.from_dict({"max_position_embeddings": True, "model_max_length": 10}), None),
        (SimpleNamespace(n_ctx=77), 77),
    ],
)
def test_the_context_is_the_smallest_that_the_config_names(config, expected):
    assert context_length(config) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_context(family):
    assert context_length(tiny_model(family, max_position_embeddings=40).config) == 40


def test_a_length_is_compared_with_the_context():
    check_length("x.seq_len", 64, 64)
    check_length("x.seq_len", 10**9, None)
    with pytest.raises(BadInput) as caught:
        check_length("x.seq_len", 65, 64)
    assert str(caught.value) == "x.seq_len is 65, but the model has a context of 64 tokens; give at most 64."
    with pytest.raises(BadInput, match="but model mine has a context of 64 tokens; leave it out"):
        check_length("a block", 65, 64, "model mine", "leave it out")


def test_tokens_are_compared_with_context_and_embedding():
    model = tiny_model("llama", max_position_embeddings=16)  # 128 rows
    fits = [torch.full((16,), 127), torch.arange(3), torch.empty(0, dtype=torch.int64)]
    check_tokens("the samples", "seq_len", fits, model)
    check_tokens("the samples", "seq_len", [], model)
    with pytest.raises(BadInput, match="seq_len is 17, but the model has a context of 16 tokens"):
        check_tokens("the samples", "seq_len", [*fits, torch.zeros(17, dtype=torch.int64)], model)
    with pytest.raises(BadInput, match="seq_len is 19, but"):
        check_tokens("the samples", "seq_len", fits, model, before=3)
    with pytest.raises(BadInput, match="the samples hold the token id 128, but the model's embedding has 128 rows"):
        check_tokens("the samples", "seq_len", [*fits, torch.tensor([5, 128])], model)
