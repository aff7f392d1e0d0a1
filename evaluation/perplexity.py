"""Perplexities by our own definitions: blocks of one long text, or documents one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunebench.evaluation.catalogue import PerplexityDefinition
from prunebench.evaluation.engine.engine import Engine, NonFiniteScore
from prunebench.evaluation.engine.scoring import ScoreRequest
from prunebench.evaluation.outcomes import ItemOutcome
from prunebench.evaluation.sources import Row
from prunebench.models.errors import BadInput

Blocks = list[list[int]]


def token_blocks(engine: Engine, rows: Sequence[Row], definition: PerplexityDefinition) -> Blocks:
    """Consecutive blocks of the text made by joining all rows; the remainder is dropped.

    Raises:
        BadInput: the text is shorter than one block, or a block longer than the model's context.
    """
    if definition.block > engine.max_length:
        raise BadInput(f"Blocks of {definition.block} tokens don't fit the model's context of {engine.max_length} tokens.")
    text = definition.join.join(row[definition.field] for row in rows)
    tokens = engine.tokenizer(text, verbose=False)["input_ids"]
    count = len(tokens) // definition.block
    if count == 0:
        raise BadInput(f"The text holds {len(tokens)} tokens, fewer than one block of {definition.block}.")
    return [tokens[i * definition.block : (i + 1) * definition.block] for i in range(count)]


def score_blocks(engine: Engine, blocks: Blocks, indices: Sequence[int], progress: Callable[[int, int], None] | None) -> list[ItemOutcome]:
    """Each block alone: tokens 2..n given those before it."""
    requests = [ScoreRequest(engine.prompt_ids + blocks[i][:-1], blocks[i][1:]) for i in indices]
    outcomes = []
    for place, (index, score) in enumerate(zip(indices, engine.score(requests, progress), strict=True)):
        if score.total != score.total:
            raise NonFiniteScore(place)
        outcomes.append(
            ItemOutcome(
                item_id=f"block-{index}",
                stratum="",
                metrics={"token_perplexity": score.total},
                choice_loglikelihoods=[score.total],
                weight=len(blocks[index]) - 1,
            )
        )
    return outcomes


def score_documents(
    engine: Engine,
    rows: Sequence[Row],
    indices: Sequence[int],
    definition: PerplexityDefinition,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[ItemOutcome], int]:
    """Each document alone, all its tokens after BOS; returns outcomes and how many were cut from the left."""
    encoded = engine.encode([rows[i][definition.field] for i in indices], add_special_tokens=False)
    requests = []
    truncated = 0
    for index in indices:
        tokens = encoded[rows[index][definition.field]]
        truncated += len(tokens) > engine.max_length
        tokens = tokens[-engine.max_length :]
        before = engine.prompt_ids or [engine.prefix_token]
        requests.append(ScoreRequest(before + tokens[:-1], tokens))
    outcomes = []
    for place, (index, score) in enumerate(zip(indices, engine.score(requests, progress), strict=True)):
        if score.total != score.total:
            raise NonFiniteScore(place)
        outcomes.append(
            ItemOutcome(
                item_id=str(index),
                stratum="",
                metrics={"token_perplexity": score.total},
                choice_loglikelihoods=[score.total],
                weight=len(score.log_probs),
            )
        )
    return outcomes, truncated
