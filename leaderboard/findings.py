"""Headline sentences, made from the tests and from nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Score
from prunebench.leaderboard.compare import Block, Comparisons, Pair
from prunebench.leaderboard.tables import STATUS_WORDS, half_width, suite_ids


@dataclass(frozen=True)
class Finding:
    """One sentence with its evidence."""

    head: str
    body: str
    tone: Literal["win", "tie", "bad"]


def findings(entries: list[Entry], comparisons: Comparisons) -> list[Finding]:
    """One sentence a block (differences before ties, first suites first), what is at chance, what did not finish."""
    order = {s: i for i, s in enumerate(suite_ids(entries))}
    single = len({e.model for e in entries}) == 1
    blocks = sorted(comparisons.blocks, key=lambda b: (order[b.suite], b.model, b.sparsity, b.recovery))
    head = sorted((f for block in blocks for f in _of_block(block, comparisons, single)), key=lambda f: f.tone != "win")
    first = [f for f in (_at_chance(entries, order, single), _unfinished(entries)) if f is not None]
    return [*head[: max(0, 6 - len(first))], *first, *head[max(0, 6 - len(first)) :]]


def _synthetic(block: Block) -> str:
    return "Synthetic: " if any(e.synthetic for e in block.entries) else ""


def _where(block: Block, single: bool) -> str:
    of = "all parameters" if block.basis == "total" else "the decoder blocks' parameters"
    text = f"With {fmt.sparsity(block.sparsity)} of {of} removed"
    if block.recovery != "none":
        text += f" and {fmt.short(block.recovery, 24)} recovery"
    return text if single else f"{text}, {fmt.model_label(block.model)}"


def _of_block(block: Block, comparisons: Comparisons, single: bool) -> list[Finding]:
    suite = block.suite.removesuffix(" (synthetic)")
    where = _synthetic(block) + _where(block, single)
    if len(block.entries) == 1:
        only = block.entries[0]
        return [Finding(f"{where}, {only.label} is the only method scored on {suite}.", _kept(only, block, comparisons), "tie")]
    best = [e for e in block.entries if comparisons.ranks[(e.id, block.suite)] == 1]
    if not block.pairs:
        return [Finding(f"{where}, methods could not be compared on {suite}.", "No standard errors were recorded.", "tie")]
    if len(best) == len(block.entries):
        return [_all_tied(block, where, suite)]
    ordered = sorted(best, key=lambda e: _value(e, block.suite), reverse=_higher(block))
    evidence = _evidence(block, ordered)
    kept = _kept(ordered[0], block, comparisons)
    if len(best) == 1:
        beaten = [p for p in block.pairs if p.winner is best[0]]
        everyone = len(beaten) == len(block.entries) - 1
        than = "every other method scored" if everyone and len(beaten) > 1 else _join([_loser(p).label for p in beaten])
        return [Finding(f"{where}, {best[0].label} is better than {than} on {suite}.", f"{evidence} {kept}", "win")]
    names = _join([e.label for e in ordered])
    return [Finding(f"{where}, {names} share first place on {suite}.", f"{evidence} {kept}", "win")]


def _all_tied(block: Block, where: str, suite: str) -> Finding:
    widest = max(block.pairs, key=lambda p: abs(p.result.difference))
    body = f"The largest difference is {_difference(widest)} between {widest.a.label} and {widest.b.label}, Holm p {_p(widest.holm_p)}."
    if block.detectable is not None:
        if widest.is_log:
            least = f"a factor of {fmt.significant(math.exp(block.detectable), 3)}"
        else:
            least = _amount(block.detectable, _score(widest.a, block.suite))
        body += f" This sample could have shown {least}."
    return Finding(f"{where}, no method is significantly better than another on {suite}.", body, "tie")


def _evidence(block: Block, best: list[Entry]) -> str:
    ids = {e.id for e in best}
    won = [p for p in block.pairs if p.winner is not None and p.winner.id in ids and _loser(p).id not in ids]
    scores = ", ".join(f"{e.label} {_shown(e, block.suite)}" for e in best[:3])
    if not won:
        return f"{scores}."
    closest = min(won, key=lambda p: abs(p.result.difference))
    loser = _loser(closest)
    low, high = sorted((abs(closest.result.interval.low), abs(closest.result.interval.high)))
    score = _score(closest.a, block.suite)
    if closest.is_log:
        span = f"95 % interval {fmt.significant(math.exp(low), 3)} to {fmt.significant(math.exp(high), 3)}"
    else:
        span = f"95 % interval {_amount(low, score, unit=False)} to {_amount(high, score)}"
    winner = closest.winner
    assert winner is not None
    return (
        f"{scores}; the nearest significantly worse one is {loser.label} with {_shown(loser, block.suite)}, "
        f"{_difference(closest)} behind {winner.label} ({span}, Holm p {_p(closest.holm_p)})."
    )


def _kept(entry: Entry, block: Block, comparisons: Comparisons) -> str:
    kept = comparisons.retention.get((entry.id, block.suite))
    score = _score(entry, block.suite)
    if kept is None or block.dense is None:
        return ""
    for pair in block.against_dense:
        if pair.a is entry and not pair.is_significant:
            return f"{entry.label} is not told apart from the dense model: difference {_difference(pair)}, Holm p {_p(pair.holm_p)}."
    share, error = kept
    if score.kind == "perplexity":
        return f"{entry.label}: {fmt.significant(share, 3)} times the dense perplexity."
    if score.kind != "percent":
        return ""
    sure = "" if error is None else f" ± {fmt.fixed(196 * error, 0)}"
    text = f"{entry.label} keeps {fmt.fixed(100 * share, 0)}{sure} % of the dense score"
    dense = block.dense.suites[block.suite].mean
    if dense is not None and dense.margin and score.margin is not None and dense.margin > 0:
        text += f", and {fmt.fixed(100 * score.margin / dense.margin, 0)} % of its margin over chance"
    return text + "."


def _at_chance(entries: list[Entry], order: dict[str, int], single: bool) -> Finding | None:
    found = [
        (e, s)
        for e in entries
        for s in e.suites.values()
        if not e.is_dense and s.mean is not None and s.mean.chance and s.mean.is_at_chance
    ]
    scored = [e for e in entries if not e.is_dense and any(s.mean is not None and s.mean.chance for s in e.suites.values())]
    if not found:
        return None
    found.sort(key=lambda x: order[x[1].id])
    suites = list(dict.fromkeys(s.id for _, s in found))
    some = "; ".join(
        f"{(e.title if not single else e.full_label + ' ' + fmt.sparsity(e.sparsity))} on {s.id} ({_shown(e, s.id)}, chance "
        f"{fmt.score(s.mean.chance, 'percent') if s.mean else ''})"
        for e, s in found[:3]
    )
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    head = f"{len({e.id for e, _ in found})} of {len(scored)} pruned settings can't be told apart from guessing on {_join(suites[:3])}."
    return Finding(head, f"{some}{more}.", "bad")


def _unfinished(entries: list[Entry]) -> Finding | None:
    records = [(e, r) for e in entries for r in e.records]
    lost = [(e, r) for e, r in records if r.run.status != "done"]
    if not lost:
        return None
    kinds = list(dict.fromkeys(STATUS_WORDS[r.run.status] for _, r in lost))
    first, record = lost[0]
    reason = fmt.short(record.run.reason, 160) or "no reason recorded"
    return Finding(
        f"{len(lost)} of {len(records)} cell{'s' if len(records) > 1 else ''} did not finish ({_join(kinds)}).",
        f"{first.title}: {reason}.",
        "bad",
    )


def _loser(pair: Pair) -> Entry:
    return pair.b if pair.winner is pair.a else pair.a


def _score(entry: Entry, suite: str) -> Score:
    mean = entry.suites[suite].mean
    assert mean is not None
    return mean


def _value(entry: Entry, suite: str) -> float:
    return _score(entry, suite).value


def _higher(block: Block) -> bool:
    return _score(block.entries[0], block.suite).higher_is_better


def _shown(entry: Entry, suite: str) -> str:
    score = _score(entry, suite)
    text = fmt.score(score.value, score.kind)
    return text if score.interval is None else f"{text} ± {half_width(score)}"


def _difference(pair: Pair) -> str:
    if pair.is_log:
        return f"a factor of {fmt.significant(math.exp(abs(pair.result.difference)), 3)}"
    return _amount(abs(pair.result.difference), _score(pair.a, pair.suite))


def _amount(value: float, score: Score, unit: bool = True) -> str:
    if score.kind == "percent":
        return fmt.fixed(100 * value, 1) + (" points" if unit else "")
    return fmt.significant(value, 3)


def _p(value: float) -> str:
    text = fmt.p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _join(names: list[str]) -> str:
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
