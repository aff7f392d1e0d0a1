"""Results as a plain-text table in the manner of lm-eval's."""

from __future__ import annotations

from collections.abc import Sequence

from prunebench.evaluation.results import ProtocolResult, TaskResult

HEADER = ("Protocol", "Task", "Split", "Shots", "Metric", "n", "", "Value", "", "Stderr", "Chance", "Margin")


def _number(value: float | None, is_score: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if is_score else f"{value:.3f}"


def _row(first: str, task: TaskResult) -> tuple[str, ...]:
    is_score = task.higher_is_better
    margin = task.value - task.chance if task.chance is not None and is_score else None
    return (
        first,
        task.task,
        f"{task.split} ({task.source})",
        str(task.shots),
        task.metric,
        str(task.n),
        "↑" if is_score else "↓",
        _number(task.value, is_score),
        "±",
        _number(task.stderr, is_score),
        _number(task.chance, is_score),
        _number(margin, is_score),
    )


def format_table(results: Sequence[ProtocolResult]) -> str:
    """One row a task and one a mean, then each protocol's definition and the notes of its tasks."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        for place, task in enumerate(result.tasks):
            rows.append(_row(f"{result.protocol} v{result.version}" if place == 0 else "", task))
        if result.mean is not None and len(result.tasks) > 1:
            n = str(sum(task.n for task in result.tasks))
            rows.append(
                (
                    "",
                    "mean of tasks",
                    "",
                    "",
                    "",
                    n,
                    "↑",
                    _number(result.mean.value, True),
                    "±",
                    _number(result.mean.stderr, True),
                    _number(result.chance, True),
                    _number(result.margin, True),
                )
            )
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    numeric = {3, 5, 7, 9, 10, 11}

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if i in numeric else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "|" + "|".join(padded) + "|"

    rule = "|" + "|".join(("-" * (w - 1) + ":" if i in numeric and w else "-" * w) for i, w in enumerate(widths)) + "|"
    lines = [line(HEADER), rule, *(line(row) for row in rows), ""]
    for result in results:
        lines.append(f"{result.protocol} v{result.version}: {result.definition}")
        notes: dict[str, list[str]] = {}
        for task in result.tasks:
            for note in task.notes:
                notes.setdefault(note, []).append(task.task)
        lines += [f"  {', '.join(tasks)}: {note}" for note, tasks in notes.items()]
    return "\n".join(lines) + "\n"
