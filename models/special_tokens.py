"""The ids that a tokenizer puts around a text: which begin it (BOS) and which end it (EOS)."""

from __future__ import annotations

from typing import Any, Literal

from prunebench.models.errors import BadInput

Bos = Literal["tokenizer", "always", "never"]
"""Whether a text begins with BOS: as the tokenizer does in real use, always, or never."""

_PROBE = "a"


def special_affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer adds before and after every text when it is called as users call it.

    Returns:
        (before, after): LLaMA and Gemma have ([bos], []), Qwen and SmolLM2 ([], []), T5 ([], [eos]).
    """
    bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(_PROBE, add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


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
