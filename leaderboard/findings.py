"""Headline sentences, made from the tests and from nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Score
from prunebench.leaderboard.compare import ONE_SEED, Block, Comparisons, Pair
from prunebench.leaderboard.statistics import times_needed
from prunebench.leaderboard.tables import STATUS_WORDS, half_width, kept_cell, suite_ids


@dataclass(frozen=True)
class Finding:
    """One sentence with its evidence."""

    head: str
    body: str
    tone: Literal["win", "tie", "bad"]


def findings(entries: list[Entry], comparisons: Comparisons) -> list[Finding]:
    """One sentence a race and suite (differences before ties, first suites first), where the dense model is at chance, what did not
    finish."""
    order = {s: i for i, s in enumerate(suite_ids(entries))}
    single = len({e.model for e in entries}) == 1
    blocks = sorted(comparisons.blocks, key=lambda b: (order[b.suite], b.model, b.sparsity, b.track))
    head = sorted((of_block(block, comparisons, single) for block in blocks), key=lambda f: f.tone != "win")
    first = [*_dense_at_chance(comparisons, order, single), *_collapsed(entries, comparisons, order, single)]
    first += [f for f in (_unfinished(entries),) if f is not None]
    return [*head[: max(0, 6 - len(first))], *first, *head[max(0, 6 - len(first)) :]]


def _synthetic(block: Block) -> str:
    return "Synthetic: " if block.synthetic else ""


def where(block: Block, single: bool) -> str:
    """The race in words: 'With 50 % of all parameters removed and no training'."""
    of = "all parameters" if block.basis == "total" else "the decoder blocks' parameters"
    text = f"With {fmt.sparsity(block.sparsity)} of {of} removed and {block.track}"
    return text if single else f"{text}, {fmt.model_label(block.model)}"


def of_block(block: Block, comparisons: Comparisons, single: bool) -> Finding:
    """Who is better in one race on one suite, or why that can't be told."""
    suite = block.name
    head = _synthetic(block) + where(block, single)
    ranked = [e for e in block.entries if (e.id, block.suite) in comparisons.ranks]
    others = _others(block, comparisons)
    ablations = _ablations(block)
    if len(block.entries) == 1:
        only = block.entries[0]
        body = f"{_kept(only, block, comparisons)} {ablations}".strip()
        return Finding(f"{head}, {only.full_label} is the only method scored on {suite}.", body, "tie")
    if not ranked:
        body = f"{others} {_checkpoints(block)} {ablations}".strip()
        return Finding(f"{head}, it can't be told which method is best on {suite}.", body, "tie")
    others = f"{others} {ablations}".strip()
    best = [e for e in ranked if comparisons.ranks[(e.id, block.suite)].low == 1]
    if len(best) == len(ranked):
        return _all_tied(block, head, suite, ranked, others)
    ordered = sorted(best, key=lambda e: _score(e, block.suite).value, reverse=_higher(block))
    body = f"{_evidence(block, ordered)} {_kept(ordered[0], block, comparisons)} {others}"
    if len(best) == 1:
        beaten = [_loser(p) for p in block.pairs if p.winner is best[0]]
        everyone = len(beaten) == len(block.entries) - 1
        than = "every other method scored" if everyone and len(beaten) > 1 else _join([e.full_label for e in beaten])
        return Finding(f"{head}, {best[0].full_label} is better than {than} on {suite}.", body.strip(), "win")
    names = _join([e.full_label for e in ordered])
    return Finding(f"{head}, {names} share first place on {suite}.", body.strip(), "win")


def _others(block: Block, comparisons: Comparisons) -> str:
    """The methods without a rank, by reason."""
    reasons: dict[str, list[str]] = {}
    for entry in block.entries:
        why = comparisons.unranked.get((entry.id, block.suite))
        if why:
            reasons.setdefault(why, []).append(entry.full_label)
    more = " To rank these needs at least 3 seeds of each." if ONE_SEED in reasons else ""
    return " ".join(f"Not ranked: {_join(labels)} ({why})." for why, labels in reasons.items()) + more


def _ablations(block: Block) -> str:
    """What the ablations show, each against its method's main setting."""
    if not block.ablation_pairs:
        return ""
    count = len(block.ablation_pairs)
    better = [p.a.full_label for p in block.ablation_pairs if p.winner is p.a]
    worse = [p.a.full_label for p in block.ablation_pairs if p.winner is p.b]
    said = [f"{_join(better)} better"] if better else []
    said += [f"{_join(worse)} worse"] if worse else []
    what = f"{count} ablation{'s' if count > 1 else ''}"
    if not said:
        return f"{what}: not told apart from the main setting of the method."
    return f"{what}, against the main setting of the method: {'; '.join(said)}."


def _checkpoints(block: Block) -> str:
    """What tests of single checkpoints show, where nothing can be said of the methods."""
    ahead = [p for p in block.pairs if p.ahead is not None and p.one_seed and p.ahead not in p.collapsed and p.holds_where_dense_can]
    if not ahead:
        return ""
    widest = max(ahead, key=lambda p: abs(p.result.difference) / p.result.stderr if p.result.stderr else 0.0)
    first = widest.ahead
    assert first is not None
    other = widest.b if first is widest.a else widest.a
    return (
        f"As checkpoints, {first.full_label} is {_difference(widest)} ahead of {other.full_label} (Holm p {_p(widest.holm_p)}); "
        "another seed may turn that round."
    )


def _all_tied(block: Block, head: str, suite: str, ranked: list[Entry], others: str) -> Finding:
    ids = {e.id for e in ranked}
    pairs = [p for p in block.pairs if p.a.id in ids and p.b.id in ids]
    widest = max(pairs, key=lambda p: abs(p.result.difference))
    names = f"{widest.a.full_label} and {widest.b.full_label}"
    body = f"The largest difference is {_difference(widest)} between {names}, Holm p {_p(widest.holm_p)}."
    if widest.ahead is not None and not widest.holds_where_dense_can:
        body += " It is not there on the tasks that the dense model can do."
    if block.detectable is not None:
        if widest.is_log:
            least = f"a factor of {fmt.ratio(block.detectable)}"
        else:
            least = _amount(block.detectable, _score(widest.a, block.suite))
        body += f" This sample could have shown {least}{_needs(widest)}."
    return Finding(f"{head}, no method can be told to be better than another on {suite}.", f"{body} {others}".strip(), "tie")


MOST_TIMES = 1000.0


def _needs(pair: Pair) -> str:
    """What a sample must have to show the difference that was seen."""
    factor, of_seeds = times_needed(pair.result.difference, pair.result, pair.family.size)
    if factor <= 1 or factor > MOST_TIMES:
        return "" if factor <= 1 else "; no sample of a size that can be run would tell them apart"
    if of_seeds:
        seeds = max(len(e.suites[pair.suite].scored) for e in (pair.a, pair.b))
        return f"; to tell them apart needs about {math.ceil(factor * seeds)} seeds of each"
    items = factor * pair.result.n
    return f"; to tell them apart needs about {fmt.whole(items)} items"


def _evidence(block: Block, best: list[Entry]) -> str:
    ids = {e.id for e in best}
    won = [p for p in block.pairs if p.winner is not None and p.winner.id in ids and _loser(p).id not in ids]
    scores = ", ".join(f"{e.full_label} {_shown(e, block.suite)}" for e in best[:3])
    if not won:
        return f"{scores}."
    closest = min(won, key=lambda p: abs(p.result.difference))
    loser = _loser(closest)
    low, high = sorted((abs(closest.result.interval.low), abs(closest.result.interval.high)))
    score = _score(closest.a, block.suite)
    if closest.is_log:
        span = f"95 % interval {fmt.ratio(low)} to {fmt.ratio(high)}"
    else:
        span = f"95 % interval {_amount(low, score, unit=False)} to {_amount(high, score)}"
    winner = closest.winner
    assert winner is not None
    seeds = len(winner.suites[block.suite].scored), len(loser.suites[block.suite].scored)
    return (
        f"{scores}; the nearest significantly worse one is {loser.full_label} with {_shown(loser, block.suite)}, "
        f"{_difference(closest)} behind {winner.full_label} ({span}, Holm p {_p(closest.holm_p)}, {closest.result.n:,} items, "
        f"{seeds[0]} and {seeds[1]} seed{'s' if sum(seeds) > 2 else ''})."
    )


def _kept(entry: Entry, block: Block, comparisons: Comparisons) -> str:
    """What a row keeps of the dense model."""
    place = (entry.id, block.suite)
    seeds = ", of this checkpoint" if comparisons.unranked.get(place) == ONE_SEED else ""
    if _score(entry, block.suite).kind == "perplexity":
        ratio = comparisons.of_dense.get(place)
        return (
            ""
            if ratio is None
            else f"{entry.full_label}: {kept_cell(ratio, True).full} times the dense perplexity{seeds}.".replace("×", "")
        )
    kept = comparisons.kept.get(place)
    if kept is None:
        return ""
    tasks = f"{len(kept.tasks)} task{'s' if len(kept.tasks) > 1 else ''} that it can do"
    return f"{entry.full_label} keeps {kept_cell(kept).full} of what the dense model has above chance on the {tasks}{seeds}."


def _dense_at_chance(comparisons: Comparisons, order: dict[str, int], single: bool) -> list[Finding]:
    """On which tasks the dense model is at chance: nothing can be kept there."""
    found: dict[tuple[str, str], Block] = {}
    for block in comparisons.blocks:
        if block.able is not None and block.able.at_chance and block.dense is not None:
            found.setdefault((block.model, block.suite), block)
    said = []
    for block in sorted(found.values(), key=lambda b: (order[b.suite], b.model)):
        assert block.able is not None
        assert block.dense is not None
        tasks = block.dense.suites[block.suite].tasks
        shown = [
            f"{name} ({_value(tasks[name])}, chance {fmt.score(tasks[name].chance, tasks[name].kind)})" for name in block.able.at_chance
        ]
        whose = "The dense model" if single else f"Dense {fmt.model_label(block.model)}"
        head = f"{whose} is at chance on {_join(list(block.able.at_chance))} of {block.name}."
        said.append(Finding(head, f"{'; '.join(shown)}. Retention leaves these tasks out, and no win rests on them.", "bad"))
    return said


def _collapsed(entries: list[Entry], comparisons: Comparisons, order: dict[str, int], single: bool) -> list[Finding]:
    """Which rows lost everything."""
    by_id = {e.id: e for e in entries}
    lost = sorted(comparisons.collapsed, key=lambda where: (order[where[1]], where[0]))
    if not lost:
        return []
    names = [
        f"{e.full_label + ' ' + fmt.sparsity(e.sparsity) if single else e.title} on {e.suites[suite].name} ({_value(_score(e, suite))})"
        for e, suite in ((by_id[i], suite) for i, suite in lost)
    ]
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    pruned = sum(not e.is_dense and bool(e.suites) for e in entries)
    head = f"{len({i for i, _ in lost})} of {pruned} pruned settings collapsed on a suite."
    body = f"{'; '.join(names[:3])}{more}: above chance on no task, or over 10 times the dense perplexity. They are not ranked."
    return [Finding(head, body, "bad")]


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


def _higher(block: Block) -> bool:
    return _score(block.entries[0], block.suite).higher_is_better


def _value(score: Score) -> str:
    return fmt.score(score.value, score.kind)


def _shown(entry: Entry, suite: str) -> str:
    score = _score(entry, suite)
    return _value(score) if score.interval is None else f"{_value(score)} ± {half_width(score)}"


def _difference(pair: Pair) -> str:
    if pair.is_log:
        return f"a factor of {fmt.ratio(abs(pair.result.difference))}"
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
