"""How learnt masks kept to their schedule: a figure and a table of target, expected and realised sparsity."""

from __future__ import annotations

from pathlib import Path

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.exports import as_markdown
from prunebench.leaderboard.plots.style import INK, PALETTE, figure
from prunebench.leaderboard.record import Record
from prunebench.leaderboard.tables import Cell, Column

Curve = list[tuple[float, float]]
COLUMNS = 3
LINES = (  # curve, what it is called, its look
    ("prune: target_sparsity", "target", {"color": INK, "ls": "--"}),
    ("prune: expected_sparsity", "expected", {"color": PALETTE[0]}),
    ("prune: teacher_sparsity", "teacher", {"color": PALETTE[1]}),
    ("prune: realised_sparsity", "realised", {"color": PALETTE[2], "lw": 2.5}),
)


def learnt(entries: list[Entry]) -> list[tuple[Entry, Record]]:
    """Every finished run of a setting that learnt its masks under a schedule."""
    return [(entry, record) for entry in entries for record in entry.done if "prune: expected_sparsity" in record.metrics.curves]


def schedule_figure(runs: list[tuple[Entry, Record]], path: Path) -> None:
    """One panel a run, as a PNG."""
    columns = min(COLUMNS, len(runs))
    rows = -(-len(runs) // columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure(3.1 * columns, 2.4 * rows + 0.4, rows, columns) as (fig, axes):
        handles = {}
        for axis, (entry, record) in zip(axes, runs, strict=False):
            for name, label, look in LINES:
                points = record.metrics.curves.get(name)
                if points:
                    (handles[label],) = axis.plot(*zip(*points, strict=True), **({"lw": 1.3} | look))
            axis.set_title(f"{fmt.short(entry.label, 40)}\n{entry.sparsity:.0%}, seed {record.run.seed}", fontsize=8)
            axis.set_xlabel("step")
            axis.set_ylim(bottom=0)
        for axis in axes[len(runs) :]:
            axis.set_axis_off()
        fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles) if columns > 1 else 2)
        fig.savefig(path, dpi=110, metadata={"Software": "prunebench"})


def schedule_table(runs: list[tuple[Entry, Record]]) -> str:
    """One row a run: how far expected sparsity strayed, where it ended, and what was removed of the budget's basis."""
    keys = ("setting", "sparsity", "seed", "largest lag", "largest lead", "expected at the end", "realised", "parameters over budget")
    rows = []
    for entry, record in runs:
        metrics = record.metrics
        target, expected = dict(metrics.curves["prune: target_sparsity"]), metrics.curves["prune: expected_sparsity"]
        leads = [value - target[step] for step, value in expected if step in target]
        is_blocks = record.run.basis == "blocks"
        kept, dense = (
            (metrics.params_blocks, metrics.dense_params_blocks) if is_blocks else (metrics.params_total, metrics.dense_params_total)
        )
        assert kept is not None  # a finished, pruned run has all three
        assert dense is not None
        assert entry.sparsity is not None
        budget = (1 - entry.sparsity) * dense
        words = (
            entry.label,
            f"{entry.sparsity:.0%}",
            str(record.run.seed),
            f"{max(0.0, -min(leads)):.3f}",
            f"{max(0.0, max(leads)):.3f}",
            f"{expected[-1][1]:.4f}",
            f"{1 - kept / dense:.4f}",
            f"{kept / budget - 1:+.3%}",
        )
        rows.append({key: Cell(None, word) for key, word in zip(keys, words, strict=True)})
    return as_markdown([Column(key, key, "always", "", False) for key in keys], rows)
