"""Perplexities by our own definitions: blocks of one long text, or documents one by one.

Blocks follow LLM-Pruner, Wanda and SparseGPT: the text is cut into consecutive blocks of n tokens, and tokens 2 to n of each
are predicted from those before them in the block. Those scripts let the tokenizer put one BOS at the very start of the text,
so all other blocks begin in the middle of it without one; a model that has never read a text without BOS then gives
numbers that mean nothing (Gemma: 650 instead of 21). Here the text is tokenised without special tokens, and
where texts of this tokenizer begin with BOS, every block is read behind it, as lm-eval reads its windows. The blocks
and the n - 1 tokens that are scored stay the same with and without BOS, so what a block costs more or less is due to it
alone, and a tokenizer that adds none gives what those scripts give. Behind a prompt, no BOS is put in again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunebench.evaluation.catalogue import PerplexityDefinition
from prunebench.evaluation.engine.encoding import Encoder
from prunebench.evaluation.engine.engine import Engine, NonFiniteScore, RequestProblem
from prunebench.evaluation.engine.scoring import ScoreRequest
from prunebench.evaluation.outcomes import ItemOutcome
from prunebench.evaluation.sources import Row
from prunebench.models.errors import BadInput

Blocks = list[list[int]]


def token_blocks(engine: Engine, rows: Sequence[Row], definition: PerplexityDefinition) -> Blocks:
    """Consecutive blocks of the text made by joining all rows, without special tokens; the remainder is dropped.

    Raises:
        BadInput: the text is shorter than one block, or a block (behind its BOS) longer than the model's context.
    """
    before = 0 if engine.prompt_ids else len(engine.encoder.begins)
    if max(definition.block, before + definition.block - 1) > engine.max_length:
        raise BadInput(f"Blocks of {definition.block} tokens don't fit the model's context of {engine.max_length} tokens.")
    text = definition.join.join(row[definition.field] for row in rows)
    tokens = engine.encoder.encode([text], add_special_tokens=False)[text]
    count = len(tokens) // definition.block
    if count == 0:
        raise BadInput(f"The text holds {len(tokens)} tokens, fewer than one block of {definition.block}.")
    return [tokens[i * definition.block : (i + 1) * definition.block] for i in range(count)]


def score_blocks(engine: Engine, blocks: Blocks, indices: Sequence[int], progress: Callable[[int, int], None] | None) -> list[ItemOutcome]:
    """Each block alone, behind the prompt or BOS: tokens 2..n given those before."""
    before = engine.prompt_ids or engine.encoder.begins
    requests = [ScoreRequest(before + blocks[i][:-1], blocks[i][1:]) for i in indices]
    return _outcomes(engine, requests, [f"block-{index}" for index in indices], progress)


def score_documents(
    engine: Engine,
    rows: Sequence[Row],
    indices: Sequence[int],
    definition: PerplexityDefinition,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[ItemOutcome], int]:
    """Each document alone, all its tokens after `document_start`; returns outcomes and how many were cut from the left.

    With nothing in front (`bos` is 'never'), the first token has nothing to be predicted from and isn't scored.

    Raises:
        RequestProblem: by the index of a document of which no token can be scored.
    """
    encoded = engine.encoder.encode([rows[i][definition.field] for i in indices], add_special_tokens=False)
    before = engine.prompt_ids or document_start(engine.encoder)
    room = engine.max_length if engine.prompt_ids else engine.max_length + 1 - len(before)
    requests = []
    truncated = 0
    for place, index in enumerate(indices):
        tokens = encoded[rows[index][definition.field]]
        truncated += len(tokens) > room
        tokens = tokens[-room:]
        scored = tokens if before else tokens[1:]
        if not scored:
            raise RequestProblem(place, f"the text holds {len(tokens)} tokens, too few to score one")
        requests.append(ScoreRequest(before + tokens[:-1], scored))
    return _outcomes(engine, requests, [str(index) for index in indices], progress), truncated


def document_start(encoder: Encoder) -> list[int]:
    """What stands before a document: BOS, or EOS where the tokenizer has no BOS; nothing where `bos` is 'never'."""
    return [encoder.prefix_token] if encoder.bos == "tokenizer" else encoder.begins


def read_behind(encoder: Encoder, definition: PerplexityDefinition) -> str:
    """What blocks or documents are read behind, in a few words for the definition of the metric."""
    if encoder.prompt_ids:
        return "behind the prompt, with BOS" if encoder.begins else "behind the prompt, without BOS"
    before = encoder.begins if definition.kind == "blocks" else document_start(encoder)
    if not before:
        return "without BOS"
    is_bos = encoder.tokenizer.bos_token_id is not None or before != [encoder.tokenizer.eos_token_id]
    return f"with {'BOS' if is_bos else 'EOS as BOS'} {encoder.shown(before)}"


def _outcomes(
    engine: Engine, requests: Sequence[ScoreRequest], names: Sequence[str], progress: Callable[[int, int], None] | None
) -> list[ItemOutcome]:
    """
    Raises:
        NonFiniteScore: by the index of the request.
    """
    outcomes = []
    for place, (name, score) in enumerate(zip(names, engine.score(requests, progress), strict=True)):
        if score.total != score.total:
            raise NonFiniteScore(place)
        outcomes.append(
            ItemOutcome(
                item_id=name,
                stratum="",
                metrics={"token_perplexity": score.total},
                choice_loglikelihoods=[score.total],
                weight=len(score.log_probs),
            )
        )
    return outcomes
