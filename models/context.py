"""How long a sequence a model takes, and one sentence for tokens that it can't take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from prunebench.models.errors import BadInput

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length")


def context_length(config: Any) -> int | None:
    """Tokens that fit into a model: the smallest number that its config, or the config of its text model, gives.

    That is what transformers itself takes for the limit: rotary positions that were stretched count as stretched. What the
    tokenizer says is its own and is not asked.

    Args:
        config: a transformers config, or what custom code has in its place.
    Returns:
        None where the config names no limit.
    """
    parts = [config, getattr(config, "text_config", None)]
    if callable(getattr(config, "get_text_config", None)):
        parts.append(config.get_text_config())
    found = [part.get(name) if isinstance(part, dict) else getattr(part, name, None) for part in parts for name in _NAMES]
    return min((value for value in found if type(value) is int and value > 0), default=None)


def check_length(what: str, tokens: int, context: int | None, model: str = "the model", advice: str | None = None) -> None:
    """Refuses a length that a model's context has no room for.

    Args:
        what: the setting, or what is so long; the sentence begins with it.
        context: None: nothing is known, so nothing is refused.
        model: what the sentence calls the model. advice: what to do; None: give at most the context.
    Raises:
        BadInput: `tokens` is more than `context`.
    """
    if context is not None and tokens > context:
        advice = advice or f"give at most {context}"
        raise BadInput(f"{what} is {tokens}, but {model} has a context of {context} tokens; {advice}.")


def check_tokens(what: str, setting: str, sequences: Iterable[Tensor], model: PreTrainedModel, *, before: int = 0) -> None:
    """Refuses token ids that the model has no embedding for, and sequences that are longer than its context.

    Args:
        what: what the sequences are, in plural; setting: what makes them so long.
        sequences: (tokens,) int64 each. before: tokens that stand before or behind each of them.
    Raises:
        BadInput: names the id and the embedding's rows, or the length and the context.
    """
    longest, largest = 0, -1
    for tokens in sequences:
        if len(tokens):
            longest, largest = max(longest, len(tokens)), max(largest, int(tokens.max()))
    rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    if largest >= rows:
        raise BadInput(
            f"{what} hold the token id {largest}, but the model's embedding has {rows} rows; "
            "use the tokenizer that the model was trained with, or give the model an embedding of its size."
        )
    check_length(setting, before + longest, context_length(model.config))
