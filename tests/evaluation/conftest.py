"""A tiny tokenizer, tiny models that fit it, and the embedded model (fetched once into the cache)."""

from __future__ import annotations

from typing import Any

import pytest

VOCAB_SIZE = 264


def byte_tokenizer(bos: str | None = "<s>", eos: str | None = "</s>", adds_bos: bool = False, around: str | None = None) -> Any:
    """One token a byte, a few merges, special tokens 0 to 2.

    Args:
        around: the special tokens that stand around a text, such as `<s> $A </s>`; adds_bos is short for `<s> $A`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {symbol: 3 + i for i, symbol in enumerate(alphabet)}
    merges = [("Ġ", "a"), ("t", "h"), ("th", "e"), ("Ċ", "Ċ")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    around = "<s> $A" if adds_bos else around
    if around is not None:
        special_tokens = [("<pad>", 0), ("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=special_tokens)
    special = {"bos_token": bos, "eos_token": eos, "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{name: token for name, token in special.items() if token is not None})


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


def small_model(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A tiny model over the byte tokenizer, with sharper outputs than fresh weights give."""
    import torch

    from prunebench.models.tiny import tiny_model

    model = tiny_model(family, seed=seed, vocab_size=VOCAB_SIZE, **overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


@pytest.fixture(scope="session")
def embedded() -> Any:
    """The embedded model, loaded once."""
    from prunebench.models.loading import ModelSpec, load_model

    return load_model(ModelSpec(name="embedded:smollm2-135m-instruct", dtype="float32"))
