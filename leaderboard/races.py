"""One race at a time: its answer, what was equal, its table of at most eight columns, its matrix of pairs, the points of its charts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.compare import Block, Comparisons, Pair
from prunebench.leaderboard.fairness import Fairness, fairness
from prunebench.leaderboard.findings import Finding, of_block
from prunebench.leaderboard.pairs import difference_cell, verdict
from prunebench.leaderboard.plots.style import slug
from prunebench.leaderboard.tables import EMPTY, Cell, kept_cell, number_cell, rank_cell, score_cell, suite_ids

COSTS = (
    ("params_total", "parameters"),
    ("macs", "MACs per token"),
    ("latency", "latency, ms"),
    ("disk_bytes", "bytes on disk"),
    ("training_tokens", "training tokens"),
    ("prune_seconds", "seconds to prune"),
)
"""What a score may be set against."""


@dataclass(frozen=True)
class RaceColumn:
    """One of the few columns of a race's table."""

    key: str
    label: str
    title: str
    is_number: bool = True
    is_lower_better: bool = False


@dataclass
class RaceRow:
    """One row: a method by its main setting, the dense model, or an ablation folded under its method."""

    entry: Entry
    name: str
    tag: str
    cells: dict[str, Cell]
    ablation_of: int | None = None
    ablations: int = 0
    is_collapsed: bool = False
    pair: int | None = None
    """Of an ablation the number of its test against the main setting."""


@dataclass
class Square:
    """One field of the matrix: what the row is against the column."""

    kind: str
    text: str
    tip: str
    pair: int | None


@dataclass
class RaceView:
    """Everything of one race on one suite that the page shows."""

    index: int
    hash: str
    block: Block
    answer: Finding
    fairness: Fairness
    trust: list[tuple[str, str]]
    columns: list[RaceColumn]
    rows: list[RaceRow]
    names: list[tuple[Entry, str]]
    matrix: list[list[Square]] = field(default_factory=list)

    @property
    def at_chance(self) -> str:
        """On which tasks the dense model guesses."""
        if self.block.able is None or not self.block.able.at_chance or self.block.dense is None:
            return ""
        tasks = self.block.dense.suites[self.block.suite].tasks
        scores = [(name, tasks[name]) for name in self.block.able.at_chance]
        shown = [f"{name} ({fmt.score(s.value, s.kind)}, chance {fmt.score(s.chance, s.kind)})" for name, s in scores]
        return f"The dense model is at chance on {'; '.join(shown)}: retention leaves these out, and no win rests on them."

    @property
    def level(self) -> str:
        return f"{fmt.sparsity(self.block.sparsity)} of {'all parameters' if self.block.basis == 'total' else 'the blocks'}"

    @property
    def model(self) -> str:
        return fmt.model_label(self.block.model)

    @property
    def title(self) -> str:
        return f"{self.model}, {self.level}, {self.block.track}, {self.block.name}"


def race_views(entries: list[Entry], comparisons: Comparisons) -> list[RaceView]:
    """The races in the order of the race bar: suites as in the table, then sparsities, then tracks by tokens."""
    order = {s: i for i, s in enumerate(suite_ids(entries))}
    blocks = sorted(comparisons.blocks, key=lambda b: (b.synthetic, b.model, order[b.suite], b.sparsity, b.basis, _tokens(b)))
    numbers = {id(pair): i for i, pair in enumerate(p for block in comparisons.blocks for p in block.every_pair)}
    taken: set[str] = set()
    return [_view(i, block, entries, comparisons, numbers, taken) for i, block in enumerate(blocks)]


def _tokens(block: Block) -> float:
    return min(e.tokens_of_track for e in block.entries)


def first_race(views: list[RaceView], comparisons: Comparisons) -> int:
    """The race that the page opens with: the one that can say most (ranked methods, then methods, then tasks), never a made-up one
    beside a real one."""

    def weight(view: RaceView) -> tuple[Any, ...]:
        block = view.block
        ranked = sum((e.id, block.suite) in comparisons.ranks for e in block.entries)
        tasks = len(block.entries[0].suites[block.suite].tasks)
        return (not block.synthetic, ranked, len(block.entries), tasks, len(block.ablations), -view.index)

    return max(views, key=weight).index if views else 0


def _view(index: int, block: Block, entries: list[Entry], comparisons: Comparisons, numbers: dict[int, int], taken: set[str]) -> RaceView:
    fair = fairness(block, entries)
    rows = _rows(block, entries, comparisons, numbers)
    columns = _columns(block, rows)
    names = [(e, e.full_label) for e in [*([block.dense] if block.dense else []), *block.entries]]
    view = RaceView(index, "", block, of_block(block, comparisons, True), fair, _trust(block, comparisons), columns, rows, names)
    base = "/".join(slug(part, 60) for part in (block.model, f"{100 * block.sparsity:g}-{block.basis}", block.track, block.suite))
    view.hash = next(h for h in (base, *(f"{base}-{n}" for n in range(2, len(taken) + 3))) if h not in taken)
    taken.add(view.hash)
    if len(names) > 1:
        view.matrix = _matrix(block, [e for e, _ in names], numbers)
    return view


def _trust(block: Block, comparisons: Comparisons) -> list[tuple[str, str]]:
    """How much there is to go by: items, seeds, tasks above chance, rows with a rank."""
    example = block.entries[0].suites[block.suite]
    items = sum(part[2] for part in example.signature)
    seeds = sorted({len(e.suites[block.suite].scored) for e in block.entries})
    found = [("items", f"{items:,}"), ("seeds a row", str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}")]
    if block.able is not None:
        count = len(block.able.tasks) + len(block.able.at_chance)
        found.append(("tasks that the dense model can do", f"{len(block.able.tasks)} of {count}"))
    ranked = sum((e.id, block.suite) in comparisons.ranks for e in block.entries)
    found.append(("methods ranked", f"{ranked} of {len(block.entries)}"))
    if block.detectable is not None:
        mean = example.mean
        is_log = bool(block.pairs) and block.pairs[0].is_log
        shown = f"×{fmt.ratio(block.detectable)}" if is_log else fmt.significant(block.detectable, 2)
        if mean is not None and mean.kind == "percent":
            shown = f"{fmt.fixed(100 * block.detectable, 1)} points"
        found.append(("detectable difference", shown))
    return found


# --- table -----------------------------------------------------------------------------------------------------------


def _columns(block: Block, rows: list[RaceRow]) -> list[RaceColumn]:
    """At most eight: method, place, score, kept, perplexity, parameters, latency, training tokens; those that no row has are left out."""
    mean = block.entries[0].suites[block.suite].mean
    assert mean is not None
    unit = {"percent": "Score, %", "perplexity": "Perplexity", "number": "Score"}[mean.kind]
    found = [
        RaceColumn("method", "Method", "pruning method; its settings where they differ, all of them in the details", False),
        RaceColumn("place", "Place", "places that the corrected tests leave open", is_lower_better=True),
        RaceColumn("score", unit, f"{fmt.clean(mean.definition) or block.name}; n = {mean.n}", is_lower_better=not mean.higher_is_better),
        RaceColumn("kept", "Kept above chance", "of what the dense model has above chance, on the tasks that it can do"),
        RaceColumn("ratio", "× dense perplexity", "", is_lower_better=True),
        RaceColumn("size", "Parameters", "distinct parameters that remain; size of the checkpoint", is_lower_better=True),
        RaceColumn("latency", "Latency, ms", "on the machine of the run", is_lower_better=True),
        RaceColumn("tokens", "Training tokens", "over pruning and recovery together", is_lower_better=True),
    ]
    return [c for c in found if c.key in ("method", "score") or any(row.cells[c.key] is not EMPTY for row in rows)]


def _rows(block: Block, entries: list[Entry], comparisons: Comparisons, numbers: dict[int, int]) -> list[RaceRow]:
    """Dense first, then the methods by their places and scores, each with its ablations below it."""
    others = _other_suites(block, entries)
    tests = {pair.a.id: pair for pair in block.ablation_pairs}

    def order(entry: Entry) -> tuple[Any, ...]:
        mean = entry.suites[block.suite].mean
        assert mean is not None
        rank = comparisons.ranks.get((entry.id, block.suite))
        value = -mean.value if mean.higher_is_better else mean.value
        lost = (entry.id, block.suite) in comparisons.collapsed
        return (lost, (rank.low, rank.high) if rank else (math.inf, math.inf), value)

    rows = [_row(block.dense, block, others, comparisons)] if block.dense is not None else []
    for main in sorted(block.entries, key=order):
        own = sorted((e for e in block.ablations if e.contender == main.contender), key=order)
        row = _row(main, block, others, comparisons)
        row.ablations = len(own)
        rows.append(row)
        for ablation in own:
            below = _row(ablation, block, others, comparisons)
            below.ablation_of = main.id
            if ablation.id in tests:
                below.cells["place"] = _against_main(tests[ablation.id])
                below.pair = numbers[id(tests[ablation.id])]
            rows.append(below)
    return rows


def _against_main(pair: Pair) -> Cell:
    """What an ablation is against the main setting of its method, in the place of a place."""
    said = verdict(pair)
    word = "=" if pair.ahead is None else ("▲" if pair.winner is pair.a else "▼") if pair.winner else "△" if pair.ahead is pair.a else "▽"
    return Cell(None, word, "", f"against the main setting: {difference_cell(pair).full}, Holm p {fmt.p_value(pair.holm_p)}; {said}")


def _other_suites(block: Block, entries: list[Entry]) -> tuple[str | None, str | None]:
    """The suites that the columns 'kept' and 'perplexity' are of: this one where it fits, else the one that most rows have."""
    mean = block.entries[0].suites[block.suite].mean
    assert mean is not None
    here = [*block.entries, *block.ablations]
    counts = {s: sum(s in e.suites for e in here) for s in suite_ids(entries)}

    def most(is_ratio: bool) -> str | None:
        if (mean.kind == "perplexity") == is_ratio:
            return block.suite
        found = [s for s, count in counts.items() if count and _kind(s, here) == ("perplexity" if is_ratio else "percent")]
        return max(found, key=lambda s: counts[s]) if found else None

    return most(False), most(True)


def _kind(suite: str, entries: list[Entry]) -> str:
    means = [e.suites[suite].mean for e in entries if suite in e.suites]
    return next((mean.kind for mean in means if mean is not None), "")


def _row(entry: Entry, block: Block, others: tuple[str | None, str | None], comparisons: Comparisons) -> RaceRow:
    where = (entry.id, block.suite)
    score = score_cell(entry.suites[block.suite].mean)
    params, disk = entry.mean_of("params_total"), entry.mean_of("disk_bytes")
    size = number_cell(params, fmt.count, "" if params is None else f"{params:,.0f} parameters")
    if params is not None and disk is not None:
        size = Cell(size.sort, size.text, fmt.bytes_(disk), size.tip)
    latency = entry.efficiency("latency_ms")
    tokens = entry.training_tokens
    cells = {
        "method": Cell(entry.full_label, entry.full_label),
        "place": EMPTY if entry.is_dense else rank_cell(where, comparisons),
        "score": score,
        "kept": kept_cell(comparisons.kept.get((entry.id, others[0]))) if others[0] else EMPTY,
        "ratio": kept_cell(comparisons.of_dense.get((entry.id, others[1])), True) if others[1] else EMPTY,
        "size": EMPTY if params is None else size,
        "latency": EMPTY if latency is None else number_cell(latency, lambda v: fmt.significant(v, 3)),
        "tokens": EMPTY if not tokens else number_cell(tokens, fmt.count, f"{tokens:,.0f} tokens"),
    }
    name = fmt.short(entry.method) + (f" + {fmt.short(entry.recovery, 24)}" if entry.recovery != "none" else "")
    return RaceRow(
        entry,
        name,
        entry.variant,
        cells,
        is_collapsed=where in comparisons.collapsed,
    )


# --- matrix ----------------------------------------------------------------------------------------------------------


def _matrix(block: Block, entries: list[Entry], numbers: dict[int, int]) -> list[list[Square]]:
    pairs = {frozenset((p.a.id, p.b.id)): p for p in [*block.pairs, *block.against_dense]}
    rows = []
    for row in entries:
        squares = []
        for column in entries:
            pair = pairs.get(frozenset((row.id, column.id))) if row is not column else None
            squares.append(_square(row, column, pair, numbers))
        rows.append(squares)
    return rows


def _square(row: Entry, column: Entry, pair: Pair | None, numbers: dict[int, int]) -> Square:
    if row is column:
        return Square("self", "", "", None)
    if pair is None:
        return Square("none", "–", f"{row.full_label} and {column.full_label} were not compared", None)
    said = verdict(pair)
    tip = f"{pair.a.full_label} against {pair.b.full_label}: {difference_cell(pair).full}, Holm p {fmt.p_value(pair.holm_p)}; {said}"
    if pair.winner is not None:
        kind, text = ("better", "▲") if pair.winner is row else ("worse", "▼")
    elif pair.ahead is not None:
        kind, text = ("ahead", "△") if pair.ahead is row else ("behind", "▽")
    else:
        kind, text = "equal", "="
    return Square(kind, text, tip, numbers[id(pair)])


# --- what the script of the page reads -------------------------------------------------------------------------------


def race_data(views: list[RaceView], first: int) -> dict[str, Any]:
    """The coordinates of each race and the points of its charts; the words and tables are in the page already."""
    costs: dict[int, list[float | None]] = {}
    lines: dict[tuple[str, str], int] = {}
    races = []
    for view in views:
        block = view.block
        mean = block.entries[0].suites[block.suite].mean
        assert mean is not None
        points = []
        for row in view.rows:
            if row.ablation_of is None:
                costs.setdefault(row.entry.id, _costs(row.entry))
                line = -1 if row.entry.is_dense else lines.setdefault(row.entry.contender, len(lines))
                points.append([row.entry.id, line, row.entry.full_label, *_point(row.cells["score"]), _measured(row.entry)])
        races.append(
            {
                "hash": view.hash,
                "at": [view.model if not _is_ambiguous(view, views) else block.model, view.level, block.track, block.name],
                "key": [block.model, block.sparsity, block.basis, block.track, block.suite],
                "kind": mean.kind,
                "higher": mean.higher_is_better,
                "chance": mean.chance,
                "points": points,
            }
        )
    return {"races": races, "first": first, "costs": costs, "axes": [label for _, label in COSTS]}


def _is_ambiguous(view: RaceView, views: list[RaceView]) -> bool:
    return len({v.block.model for v in views if v.model == view.model}) > 1


def _point(cell: Cell) -> list[Any]:
    ends = [v if v is not None and math.isfinite(v) else None for v in (cell.low, cell.high)]
    return [cell.sort, *ends, f"{cell.text} {cell.sub}".strip()]


def _measured(entry: Entry) -> float:
    """The measured share of parameters removed; the target where that was not recorded."""
    measured = entry.mean_of("achieved_sparsity_total" if entry.basis == "total" else "achieved_sparsity_blocks")
    return 0.0 if entry.is_dense else measured if measured is not None else entry.sparsity or 0.0


def _costs(entry: Entry) -> list[float | None]:
    found = {
        "params_total": entry.mean_of("params_total"),
        "macs": entry.efficiency("macs_per_token"),
        "latency": entry.efficiency("latency_ms"),
        "disk_bytes": entry.mean_of("disk_bytes"),
        "training_tokens": entry.training_tokens,
        "prune_seconds": entry.stage_seconds("prune"),
    }
    return [found[key] for key, _ in COSTS]
