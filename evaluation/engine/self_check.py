"""Proves on the model itself that it is a causal language model, and that shared scoring gives its own answers.

Attention that forgets (windows, chunks, blocks) looks like full attention until a text is longer than what it
remembers. Every size of that kind that the model names is therefore tried: requests that part just before it and
cross it in the shared part, in a branch and in a choice. A window that the model hands to the attention interface is
one that the engine applies itself, so a long one is taken on trust. What is neither known nor short enough to try
bounds the length up to which requests are shared. Code that comes with a model may forget by a size that nothing names; the
engine therefore compares both forms on such a model's longest requests (`differs_on`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prunebench.evaluation.engine.scoring import Score, Scorer, ScoreRequest, is_out_of_memory, plain_scores
from prunebench.models.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST_PROBE = 2048
"""Tokens; sizes of an unknown kind are tried up to here."""

LONGEST_KNOWN_PROBE = 256
"""Tokens; windows that the engine applies itself are tried up to here."""

PROBE_ROW_TOKENS = 16
"""Row size of a probe: small, so that its shared part becomes a kept prefix."""

CHECKED_TOKENS = 64
"""Last tokens of a real request that are compared."""

_SIZE_WORDS = re.compile(r"window|chunk|local|block|stride|band|span|segment|sliding|top_?k|horizon|look_?back|mem(ory)?_len")
_OTHER_WORDS = re.compile(r"theta|freq|expert|dropout|vocab|token|_ids?$")


@dataclass
class Sharing:
    """How far requests may share their prefixes.

    scorer: None where they may not; `problem` then says why, in a sentence without full stop.
    up_to: input tokens up to which sharing is proven; None for any length. `limit` names what bounds it.
    """

    scorer: Scorer | None
    problem: str | None = None
    up_to: int | None = None
    limit: str = ""


def usable_rows(model: Any) -> int:
    """Ids below this number have a row in the embedding and, where there is a plain one, in the output projection."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = int(getattr(embedding, "num_embeddings", 0) or embedding.weight.shape[0])
    return min(rows, int(getattr(head, "out_features", rows)))


def refuse_non_causal(model: PreTrainedModel, longest: int) -> None:
    """Checks that what the model says of a token doesn't depend on later ones.

    Raises:
        BadInput: it does, so log-likelihoods and greedy texts of the model mean nothing.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise BadInput(f"{name} is an encoder with a decoder; give a causal language model.")
    n = max(2, min(16, longest))
    rows = usable_rows(model)
    base = torch.as_tensor(np.random.default_rng(1).integers(0, rows, n))
    changed = sorted({1, n // 2, n - 1})  # first, in the middle of a block, last
    ids = base.repeat(1 + len(changed), 1)
    for row, place in enumerate(changed, 1):
        ids[row, place] = (ids[row, place] + rows // 2) % rows
    ids = ids.to(next(model.parameters()).device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.double().cpu()
    moved = (logits[1:] - logits[:1]).abs().amax(-1)  # (changed, n)
    moved = torch.where(moved.isfinite(), moved, 0.0)  # NaN is reported by the items
    said = ", ".join(_told(model.config))
    tolerance = 1e-4 if said or _is_exact(model) else 2e-2  # in half precision, routed experts round otherwise in another company
    for row, place in enumerate(changed):
        if float(moved[row, :place].max()) > tolerance * float(moved[row, place:].max()):
            raise BadInput(
                f"{name} isn't causal{f' ({said})' if said else ''}: a later token changes what it says of an earlier one; "
                "give a causal language model."
            )


def _told(config: Any) -> Iterator[str]:
    """Settings by which models become bidirectional, where they are set so."""
    for key, causal in (("is_causal", True), ("is_decoder", True), ("use_bidirectional_attention", False)):
        value = getattr(config, key, causal)
        if value is not None and value != causal:
            yield f"{key}={value}"


def window_sizes(model: Any) -> dict[int, str]:
    """Whole numbers that may be the length of an attention window, with the name that each goes by.

    Looked for in the config, nested ones included, and in the attributes of the modules, by their names.
    """
    found: dict[int, str] = {}
    for name, size in _sizes(model.config.to_dict(), False):
        found.setdefault(size, name)
    for module in model.modules():
        for name, size in _sizes({key: value for key, value in vars(module).items() if not key.startswith("_")}, False, 1):
            found.setdefault(size, name)
    return found


def _sizes(value: Any, is_size: bool, depth: int = 8, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, bool) or depth < 0:
        return
    if isinstance(value, int):
        if is_size and value > 0:
            yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            text = str(key).lower()
            if not _OTHER_WORDS.search(text):
                yield from _sizes(inner, is_size or bool(_SIZE_WORDS.search(text)), depth - 1, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _sizes(inner, is_size, depth - 1, name)


def _probe_requests(rows: int, longest: int) -> list[ScoreRequest]:
    """A small random tree: a header, three contexts, two choices each."""
    generator = np.random.default_rng(0)
    header = generator.integers(0, rows, 9).tolist()
    requests = []
    for length in (5, 9, 3):
        context = header + generator.integers(0, rows, length).tolist()
        for choice in (1, 4):
            requests.append(_cut(context + generator.integers(0, rows, choice).tolist(), choice, longest))
    return requests


def _border_requests(rows: int, size: int, longest: int) -> list[ScoreRequest]:
    """Requests that part 4 tokens before `size`: two cross it in their shared part, one in its context, one in its choice."""
    generator = np.random.default_rng(size)

    def draw(n: int) -> list[int]:
        return generator.integers(0, rows, n).tolist()

    base = draw(max(1, size - 4))
    beyond = base + draw(12)
    ends = [beyond + draw(8), beyond + draw(3), base + draw(14), base + draw(6)]
    return [_cut(end, 12, longest) for end in ends]


def _cut(tokens: list[int], scored: int, longest: int) -> ScoreRequest:
    """Scores the last tokens of a sequence, of which no more than the context holds is kept."""
    tokens = tokens[: longest + 1]
    return ScoreRequest(tokens[:-1], tokens[-min(scored, len(tokens) - 1) :])


def _is_exact(model: PreTrainedModel) -> bool:
    return next(model.parameters()).dtype in (torch.float32, torch.float64)


def _difference(scores: Sequence[Score], expected: Sequence[Score], is_exact: bool) -> str | None:
    """By how much log-probabilities differ, where that is more than rounding; those that aren't numbers don't count.

    Half precision rounds logits of 20 by 0.1: SmolLM2-135M in bfloat16 differs on random tokens by 0.05 in the mean and
    by 0.24 at most, and by 1.3 and 6 where a window of 64 tokens is ignored on 80.
    """
    gaps = np.concatenate([np.abs(one.log_probs - other.log_probs) for one, other in zip(scores, expected, strict=True)])
    gaps = gaps[np.isfinite(gaps)]
    if not len(gaps) or (gaps.max() <= 1e-3 if is_exact else gaps.max() <= 1.0 and gaps.mean() <= 0.25):
        return None
    return f"log-probabilities differ by up to {gaps.max():.1e}"


def _problem(model: PreTrainedModel, requests: Sequence[ScoreRequest], scorer: Scorer) -> str | None:
    """None where the scorer gives the model's own answers; otherwise what it does instead."""
    expected = plain_scores(model, requests)
    try:
        scores = scorer.score(requests)
    except Exception as error:  # whatever a model's code makes of a row without mask and cache
        if is_out_of_memory(error):
            raise
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return _difference(scores, expected, _is_exact(model))


def make_scorer(model: PreTrainedModel, row_tokens: int | None = None, longest: int = LONGEST_PROBE) -> Sharing:
    """A scorer whose answers are this model's own, checked on random trees; or none and why not.

    The sliced output projection is tried first, then the model's own.

    Args:
        longest: tokens that fit into the model.
    """
    name, rows = type(model).__name__, usable_rows(model)
    for uses_own_head in (False, True):
        probe = Scorer(model, PROBE_ROW_TOKENS, uses_own_head)
        difference = _problem(model, _probe_requests(rows, longest), probe)
        if difference is None:
            break
    else:
        return Sharing(None, f"{name} can't share prefixes between requests ({difference})")
    found = Sharing(Scorer(model, row_tokens, uses_own_head))
    for size, called in sorted(window_sizes(model).items()):
        if size >= longest:  # no sequence gets there
            break
        is_known = size in probe.windows
        if size <= (LONGEST_KNOWN_PROBE if is_known else LONGEST_PROBE):
            difference = _problem(model, _border_requests(rows, size, longest), probe)
            if difference is not None:
                return Sharing(None, f"{name} can't share prefixes between requests longer than {called} {size} ({difference})")
        elif not is_known:
            found.up_to, found.limit = size, called
            break
    return found


def differs_on(model: PreTrainedModel, scorer: Scorer, tokens: Sequence[int]) -> str | None:
    """Compares shared and plain form on the last tokens of a real sequence; None where they agree."""
    return _problem(model, [_cut(list(tokens), CHECKED_TOKENS, len(tokens))], Scorer(model, None, scorer.head is None))
