"""Comparisons as a table: who against whom, by how much, and whether it is more than noise."""

from __future__ import annotations

import math

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.compare import Block, Comparisons, Pair
from prunebench.leaderboard.plots.style import spreadsheet_safe
from prunebench.leaderboard.tables import Cell, Column, Table

COLUMNS = [
    Column("a", "First", "always", "", False),
    Column("b", "Second", "always", "", False),
    Column("suite", "Suite", "always", "", False),
    Column("model", "Model", "always", "", False),
    Column("sparsity", "Sparsity", "always", "target"),
    Column("track", "Track", "always", "training tokens, over pruning and recovery together", False),
    Column("difference", "Difference", "always", "first minus second, in points; for perplexities first / second; with its 95 % interval"),
    Column("p", "Holm p", "always", "corrected over the family that stands beside it", is_lower_better=True),
    Column(
        "detectable", "Detectable", "always", "smallest true difference found with 80 % power at the corrected level", is_lower_better=True
    ),
    Column("verdict", "Verdict", "always", "", False),
    Column("family", "Corrected over", "always", "", False),
    Column("test", "Test", "always", "", False),
]


def every(comparisons: Comparisons) -> list[tuple[Block, Pair]]:
    """Every pair, those between methods first in each block."""
    return [(block, pair) for block in comparisons.blocks for pair in block.every_pair]


def pairs_table(comparisons: Comparisons) -> tuple[Table, list[list[int]]]:
    """The table, and the two entry ids of each row."""
    found = every(comparisons)
    rows = [_row(block, pair) for block, pair in found]
    return Table(COLUMNS, rows, list(range(len(rows)))), [[p.a.id, p.b.id] for _, p in found]


def _row(block: Block, pair: Pair) -> dict[str, Cell]:
    model = fmt.model_label(block.model)
    return {
        "a": Cell(pair.a.full_label, pair.a.full_label),
        "b": Cell(pair.b.full_label, pair.b.full_label),
        "suite": Cell(block.name, block.name),
        "model": Cell(model, model),
        "sparsity": Cell(block.sparsity, fmt.sparsity(block.sparsity)),
        "track": Cell(block.track, block.track),
        "difference": difference_cell(pair),
        "p": Cell(pair.holm_p, fmt.p_value(pair.holm_p)),
        "detectable": _detectable(pair),
        "verdict": _verdict(pair),
        "family": Cell(pair.family.kind, pair.family.kind, f"{pair.family.size} tests", pair.family.words),
        "test": Cell(pair.result.method, pair.result.method, _sample(pair), _degrees(pair)),
    }


def _sample(pair: Pair) -> str:
    counts = [len(e.suites[pair.suite].scored) for e in (pair.a, pair.b)]
    seeds = f"{counts[0]} and {counts[1]}" if counts[0] != counts[1] else str(counts[0])
    return f"n = {pair.result.n}, seeds {seeds}"


def _degrees(pair: Pair) -> str:
    degrees = pair.result.degrees_of_freedom
    return "" if math.isinf(degrees) else f"{fmt.significant(degrees, 3)} degrees of freedom"


def difference_cell(pair: Pair) -> Cell:
    """First minus second, with its 95 % interval: in points, or as a ratio for perplexities."""
    result = pair.result
    low, high = result.interval.low, result.interval.high
    if pair.is_log:
        texts = [fmt.ratio(v) for v in (result.difference, low, high)]
        return Cell(result.difference, f"×{texts[0]}", f"[{texts[1]}, {texts[2]}]")
    if _is_percent(pair):
        return Cell(result.difference, fmt.signed(100 * result.difference, 1), f"[{fmt.fixed(100 * low, 1)}, {fmt.fixed(100 * high, 1)}]")
    texts = [fmt.significant(v, 3) for v in (result.difference, low, high)]
    return Cell(result.difference, texts[0], f"[{texts[1]}, {texts[2]}]")


def _is_percent(pair: Pair) -> bool:
    mean = pair.a.suites[pair.suite].mean
    return mean is not None and mean.kind == "percent"


def _detectable(pair: Pair) -> Cell:
    least = pair.detectable
    if least is None:
        return Cell(None, fmt.MISSING)
    if pair.is_log:
        return Cell(least, f"×{fmt.ratio(least)}")
    return Cell(least, fmt.fixed(100 * least, 1) if _is_percent(pair) else fmt.significant(least, 3))


def verdict(pair: Pair) -> str:
    """What the test allows to say, in words."""
    ahead = pair.ahead
    if ahead is None:
        return "not told apart"
    if ahead in pair.collapsed:
        return "both collapsed" if len(pair.collapsed) == 2 else f"{ahead.full_label} ahead, but collapsed"
    if not pair.holds_where_dense_can:
        return f"{ahead.full_label} ahead, but not on the tasks that the dense model can do"
    if pair.one_seed:
        return f"{ahead.full_label}: this checkpoint ahead, one seed"
    return f"{ahead.full_label} better"


def _verdict(pair: Pair) -> Cell:
    text = verdict(pair)
    order = 0 if pair.winner else 1 if pair.ahead else 2
    return Cell(f"{order} {text}", text)


def export_rows(comparisons: Comparisons) -> list[dict[str, object]]:
    """comparisons.csv: full precision, uncorrected and corrected p-values."""
    rows: list[dict[str, object]] = []
    for block, pair in every(comparisons):
        result = pair.result
        rows.append(
            {
                **_about(block, pair),
                "difference": result.difference,
                "scale": "log" if pair.is_log else "score",
                "low": result.interval.low,
                "high": result.interval.high,
                "stderr": result.stderr,
                "degrees_of_freedom": result.degrees_of_freedom,
                "p": result.p_value,
                "holm_p": pair.holm_p,
                "bh_p": pair.bh_p,
                "family": pair.family.kind,
                "family_size": pair.family.size,
                "detectable_difference": pair.detectable,
                "verdict": spreadsheet_safe(verdict(pair)),
                "winner": spreadsheet_safe(pair.winner.full_label) if pair.winner else "",
                "test": result.method,
                "n": result.n,
                "a_seeds": len(pair.a.suites[pair.suite].scored),
                "b_seeds": len(pair.b.suites[pair.suite].scored),
            }
        )
    return rows


def task_rows(comparisons: Comparisons) -> list[dict[str, object]]:
    """comparisons_tasks.csv: exact McNemar of every task."""
    return [
        {**_about(block, pair), "task": t.task, "only_a_right": t.a_only, "only_b_right": t.b_only, "p": t.p_value, "holm_p": t.holm_p}
        for block, pair in every(comparisons)
        for t in pair.tasks
    ]


def _about(block: Block, pair: Pair) -> dict[str, object]:
    found = {
        "model": block.model,
        "sparsity": block.sparsity,
        "basis": block.basis,
        "track": block.track,
        "suite": block.name,
        "a": pair.a.full_label,
        "b": pair.b.full_label,
    }
    return {k: spreadsheet_safe(v) for k, v in found.items()}
