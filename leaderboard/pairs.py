"""Comparisons as a table: who against whom, by how much, and whether it is more than noise."""

from __future__ import annotations

import math

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.compare import Block, Comparisons, Pair
from prunebench.leaderboard.plots.style import spreadsheet_safe
from prunebench.leaderboard.statistics import minimum_detectable_difference
from prunebench.leaderboard.tables import Cell, Column, Table

COLUMNS = [
    Column("a", "First", "always", "", False),
    Column("b", "Second", "always", "", False),
    Column("suite", "Suite", "always", "", False),
    Column("model", "Model", "always", "", False),
    Column("sparsity", "Sparsity", "always", "target"),
    Column("recovery", "Recovery", "always", "", False),
    Column("difference", "Difference", "always", "first minus second, in points; for perplexities first / second; with its 95 % interval"),
    Column("p", "Holm p", "always", "corrected over all pairs of the same model, sparsity, recovery and suite", is_lower_better=True),
    Column(
        "detectable", "Detectable", "always", "smallest true difference found with 80 % power at the corrected level", is_lower_better=True
    ),
    Column("verdict", "Verdict", "always", "", False),
    Column("test", "Test", "always", "", False),
]


def family(block: Block, pair: Pair) -> list[Pair]:
    return block.against_dense if pair.b.is_dense else block.pairs


def every(comparisons: Comparisons) -> list[tuple[Block, Pair]]:
    """Every pair, those between methods first in each block."""
    return [(block, pair) for block in comparisons.blocks for pair in [*block.pairs, *block.against_dense]]


def pairs_table(comparisons: Comparisons) -> tuple[Table, list[list[int]]]:
    """The table, and the two entry ids of each row."""
    found = every(comparisons)
    rows = [_row(block, pair) for block, pair in found]
    return Table(COLUMNS, rows, list(range(len(rows)))), [[p.a.id, p.b.id] for _, p in found]


def _row(block: Block, pair: Pair) -> dict[str, Cell]:
    tasks = "; ".join(f"{t.task}: {t.a_only} to {t.b_only}, McNemar p {fmt.p_value(t.p_value)}" for t in pair.tasks)
    model = fmt.model_label(block.model)
    return {
        "a": Cell(pair.a.label, pair.a.label, "", tasks),
        "b": Cell(pair.b.label, pair.b.label),
        "suite": Cell(pair.suite, pair.suite),
        "model": Cell(model, model),
        "sparsity": Cell(block.sparsity, fmt.sparsity(block.sparsity)),
        "recovery": Cell(block.recovery, fmt.short(block.recovery, 24)),
        "difference": difference_cell(pair),
        "p": Cell(pair.holm_p, fmt.p_value(pair.holm_p)),
        "detectable": _detectable(block, pair),
        "verdict": _verdict(pair),
        "test": Cell(pair.result.method, pair.result.method, f"n = {pair.result.n}"),
    }


def difference_cell(pair: Pair) -> Cell:
    """First minus second, with its 95 % interval: in points, or as a ratio for perplexities."""
    result = pair.result
    low, high = result.interval.low, result.interval.high
    if pair.is_log:
        texts = [fmt.significant(math.exp(v), 3) for v in (result.difference, low, high)]
        return Cell(result.difference, f"×{texts[0]}", f"[{texts[1]}, {texts[2]}]")
    if _is_percent(pair):
        return Cell(result.difference, fmt.signed(100 * result.difference, 1), f"[{fmt.fixed(100 * low, 1)}, {fmt.fixed(100 * high, 1)}]")
    texts = [fmt.significant(v, 3) for v in (result.difference, low, high)]
    return Cell(result.difference, texts[0], f"[{texts[1]}, {texts[2]}]")


def _is_percent(pair: Pair) -> bool:
    mean = pair.a.suites[pair.suite].mean
    return mean is not None and mean.kind == "percent"


def detectable_difference(block: Block, pair: Pair) -> float | None:
    if pair.result.stderr <= 0:
        return None
    return minimum_detectable_difference(pair.result.stderr, tests=len(family(block, pair)))


def _detectable(block: Block, pair: Pair) -> Cell:
    least = detectable_difference(block, pair)
    if least is None:
        return Cell(None, fmt.MISSING)
    if pair.is_log:
        return Cell(least, f"×{fmt.significant(math.exp(least), 3)}")
    return Cell(least, fmt.fixed(100 * least, 1) if _is_percent(pair) else fmt.significant(least, 3))


def _verdict(pair: Pair) -> Cell:
    winner = pair.winner
    if winner is None:
        return Cell("1 not told apart", "not told apart")
    text = f"{winner.label} better"
    return Cell(f"0 {text}", text)


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
                "p": result.p_value,
                "holm_p": pair.holm_p,
                "bh_p": pair.bh_p,
                "family_size": len(family(block, pair)),
                "detectable_difference": detectable_difference(block, pair),
                "winner": pair.winner.label if pair.winner else "",
                "test": result.method,
                "n": result.n,
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
        "recovery": block.recovery,
        "suite": pair.suite,
        "a": pair.a.label,
        "b": pair.b.label,
    }
    return {k: spreadsheet_safe(v) for k, v in found.items()}
