"""The ids that a tokenizer puts around a text: which begin it (BOS) and which end it (EOS)."""

from __future__ import annotations

from typing import Any, Literal

from prunebench.models.errors import BadInput

Bos = Literal["tokenizer", "always", "never"]
"""Whether a text begins with BOS: as the tokenizer does in real use, always, or never."""

_PROBES = ("a", "the", "1", ".", "Hello", " ")
"""Texts of which at least one has tokens under any vocabulary."""


def special_affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer adds before and after every text when it is called as users call it.

    Returns:
        (before, after): LLaMA and Gemma have ([bos], []), Qwen and SmolLM2 ([], []), T5 ([], [eos]), BERT ([cls], [sep]).
    """
    special = set(tokenizer.all_special_ids)
    for probe in _PROBES:
        bare = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        whole = list(tokenizer(probe, add_special_tokens=True)["input_ids"])
        if not bare or special & set(bare):  # nothing of the probe is in the vocabulary
            continue
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    start, stop = 0, len(whole)  # a text is tokenised otherwise between special tokens
    while start < stop and whole[start] in special:
        start += 1
    while stop > start and whole[stop - 1] in special:
        stop -= 1
    return whole[:start], whole[stop:]


def bos_ids(tokenizer: Any, bos: Bos = "tokenizer") -> list[int]:
    """The ids that begin a text under the option `bos`.

    Raises:
        BadInput: `always`, with a tokenizer that has no BOS token.
    """
    if bos == "never":
        return []
    before, _ = special_affixes(tokenizer)
    if before or bos == "tokenizer":
        return before
    if tokenizer.bos_token_id is None:
        raise BadInput("bos is 'always', but the tokenizer has no BOS token; use 'tokenizer' or 'never'.")
    return [int(tokenizer.bos_token_id)]


def prompt_ids(tokenizer: Any, prompt: str, bos: Bos = "tokenizer") -> list[int]:
    """The ids of a prompt that stands before a text, in training and in scoring alike; [] for an empty prompt."""
    return [*bos_ids(tokenizer, bos), *tokenizer(prompt, add_special_tokens=False)["input_ids"]] if prompt else []
