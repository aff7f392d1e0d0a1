"""The table of a question's page: what was measured and how, one row a setting, what sets settings apart, where masks cut."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from findings.layer_sparsity import by_layer, layer_figure, layer_table
from findings.mask_schedule import learnt, schedule_figure, schedule_table
from findings.question import Question
from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, collect, settings_of
from prunebench.leaderboard.compare import compare, compare_pairs
from prunebench.leaderboard.exports import as_markdown
from prunebench.leaderboard.pairs import difference_cell
from prunebench.leaderboard.record import Record
from prunebench.leaderboard.tables import Cell, Column, leaderboard, suite_ids
from prunebench.leaderboard.variants import in_words, set_apart
from prunebench.models.errors import BadInput

LACKING = "no record of it is kept"
"""Reason of a row whose cell has no record."""
COST = ("training_tokens", "calibration_tokens", "prune_seconds", "prune_peak")


def table(question: Question, records: list[Record], out: Path) -> str:
    """Markdown: definitions, one row a setting, paired differences, schedules; figures are written beside the page.

    Args:
        records: what the table shows.
        out: the folder with their outcomes per item.

    Raises:
        BadInput: `against` names no row.
    """
    entries = settings_in(records)
    check_against(question, entries)
    whole = leaderboard(entries, compare(entries, out))
    wanted = ["method", "sparsity", "recovery"]
    wanted += [f"{suite}|{part}" for suite in suite_ids(entries) for part in ("mean", "kept", "retention")] + list(COST) + ["status"]
    columns = [column for key in wanted for column in whole.columns if column.key == key]
    against = question.file.against
    parts = [lacking(question)] if any(record.run.reason == LACKING for record in records) else []
    parts += by_task(entries) if question.file.tasks else []
    parts += [*gains(entries, out), *differences(entries, out, against), *held_out(entries)]
    parts += [*schedules(entries, question.folder), *layers(entries, against, question.folder)]
    return "\n".join([*definitions(entries), "", as_markdown(columns, whole.rows), *parts])


def settings_in(records: list[Record]) -> list[Entry]:
    """One entry a setting, each named by what sets it apart from all others of its method, recovery and sparsity.

    The leaderboard names them within a race; what a question compares need not be one (a setting may change how many tokens it trains on).
    """
    entries, _ = collect(records)
    alike: dict[tuple[object, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        alike[(entry.model, entry.sparsity, entry.basis, *entry.contender)].append(entry)
    for group in alike.values():
        told = set_apart([settings_of(entry.records[0].run) for entry in group])
        for entry, words in zip(group, told, strict=True):
            entry.variant = fmt.short(in_words(words), 48) if len(group) > 1 else ""
    return entries


def check_against(question: Question, entries: list[Entry]) -> None:
    """Raises:
    BadInput: the question tells settings apart from a row that isn't there.
    """
    against = question.file.against
    if against is not None and all(entry.full_label != against for entry in entries):
        known = ", ".join(sorted({entry.full_label for entry in entries if not entry.is_dense}))
        raise BadInput(f"question {question.name}: against = {against!r} names no row; the rows are: {known}.")


def lacking(question: Question) -> str:
    """What rows without numbers mean."""
    return f"\nOf the cells that are 'skipped' no record is kept; `{question.command}` runs them.\n"


def by_task(entries: list[Entry]) -> list[str]:
    """Every task of each suite of tasks with a chance level, and the mean over those on which the dense model is above it."""
    lines: list[str] = []
    for suite_id in suite_ids(entries):
        found = [entry for entry in entries if suite_id in entry.suites]
        dense = next((entry for entry in found if entry.is_dense), None)
        if dense is None:
            continue
        tasks = dense.suites[suite_id].tasks
        able = [name for name, score in tasks.items() if score.chance is not None and not score.is_at_chance]
        if not able:
            continue
        columns = [Column(key, key, "always", "", False) for key in ("setting", "sparsity", *tasks, "mean of these", "of dense")]
        rows = []
        for entry in found:
            scores = {name: score.value for name, score in entry.suites[suite_id].tasks.items()}
            mean = sum(scores[name] for name in able) / len(able)
            of_dense = mean * len(able) / sum(tasks[name].value for name in able)
            words = [entry.full_label, "" if entry.is_dense else f"{entry.sparsity:.0%}", *(f"{100 * scores[name]:.1f}" for name in tasks)]
            words += [f"{100 * mean:.1f}", f"{of_dense:.0%}"]
            rows.append({column.key: Cell(None, word) for column, word in zip(columns, words, strict=True)})
        head = f'`{suite_id}` by task, in %; "these" are the tasks on which the dense model is above chance: {", ".join(able)}.'
        lines += ["", head, "", as_markdown(columns, rows)]
    return [*lines, ""]


def held_out(entries: list[Entry]) -> list[str]:
    """Mean loss on held-out training text, of the pruned model before and after its last training."""
    keys = ("setting", "sparsity", "seed", "pruned", "and trained")
    rows = []
    for entry in entries:
        for record in entry.done:
            losses = next((points for name, points in record.metrics.curves.items() if name.endswith("validation_loss")), [])
            if len(losses) > 1:
                words = (entry.full_label, f"{entry.sparsity:.0%}", str(record.run.seed), f"{losses[0][1]:.3f}", f"{losses[-1][1]:.3f}")
                rows.append({key: Cell(None, word) for key, word in zip(keys, words, strict=True)})
    if not rows:
        return []
    head = "Loss in nats a label token on examples held out of the training text, before and after the fine-tuning or recovery:"
    return ["", head, "", as_markdown([Column(key, key, "always", "", False) for key in keys], rows)]


def schedules(entries: list[Entry], folder: Path) -> list[str]:
    """How learnt masks kept to their schedule; the figure is written into the folder."""
    runs = learnt(entries)
    if not runs:
        return []
    schedule_figure(runs, folder / "schedule.png")
    head = "How sparsity kept to its schedule (fractions of the budget's basis; lag and lead are distances below and above the target):"
    return ["", head, "", schedule_table(runs), "", "![Target, expected and realised sparsity at every step](schedule.png)"]


def layers(entries: list[Entry], against: str | None, folder: Path) -> list[str]:
    """Where learnt masks cut, beside the other methods of the grids; the figure is written into the folder.

    A recovery changes no masks: what was cut alike stands there once.
    """
    if not learnt(entries):
        return []
    cut: dict[tuple[object, ...], Entry] = {}
    for entry in entries:
        if entry.done and not entry.is_dense:
            cut.setdefault((entry.method, entry.sparsity, *(tuple(by_layer(record)) for record in entry.done)), entry)
    layer_figure(list(cut.values()), folder / "layers.png")
    head = "What was removed, of KV groups, of channels, and of the layers' units (mean of query heads and channels) by depth; then the"
    head += " mean absolute difference of a layer's sparsity between two seeds of the setting"
    head += f", and from `{against}` with the same seed:" if against else ":"
    return ["", head, "", layer_table(list(cut.values()), against), "", "![Sparsity of every layer](layers.png)"]


def definitions(entries: list[Entry]) -> list[str]:
    """What each suite is, on how many items; ± is half of the 95 % interval."""
    lines = ["Beside a score, ± is half of the 95 % interval (over items; over seeds too where there are several).", ""]
    found: dict[str, list[str]] = {}
    for suite_id in suite_ids(entries):
        suite = next(entry.suites[suite_id] for entry in entries if suite_id in entry.suites)
        text = suite.definition or (suite.mean.definition if suite.mean else "")
        found.setdefault(f"- `{suite.protocol}`: {text}", []).extend(f"{name} {score.n}" for name, score in suite.tasks.items())
    return lines + [f"{text} Items: {', '.join(counts)}." for text, counts in found.items()]


def differences(entries: list[Entry], out: Path, against: str | None) -> list[str]:
    """Paired differences of every other setting from those of the method `against`, Holm-corrected within a suite and sparsity."""
    if against is None:
        return []
    wanted = []
    for reference in (entry for entry in entries if entry.full_label == against and entry.done):
        same = (e for e in entries if e.sparsity == reference.sparsity and e.model == reference.model)
        wanted += [(other, reference) for other in same if other is not reference and other.done]
    if not wanted:
        return []
    head = f"Each setting minus `{against}` (perplexities: divided by it), with the 95 % interval, on the same items:"
    return [head, "", pairs_table(wanted, entries, out)]


def gains(entries: list[Entry], out: Path) -> list[str]:
    """Paired differences between every recovered setting and the same one without recovery."""

    def pruned_as(entry: Entry) -> str:
        run = entry.records[0].run
        return json.dumps([run.model, run.method, run.config.get("method_config"), run.sparsity, run.basis], sort_keys=True)

    plain = {pruned_as(entry): entry for entry in entries if entry.recovery == "none" and not entry.is_dense and entry.done}
    recovered = [entry for entry in entries if entry.recovery != "none" and entry.done]
    wanted = [(entry, plain[pruned_as(entry)]) for entry in recovered if pruned_as(entry) in plain]
    if not wanted:
        return []
    head = "What recovery gave: recovered minus not (perplexities: divided), with the 95 % interval, on the same items:"
    return [head, "", pairs_table(wanted, entries, out), ""]


def pairs_table(wanted: list[tuple[Entry, Entry]], entries: list[Entry], out: Path) -> str:
    """One row a pair and suite; Holm-corrected within a suite and sparsity."""
    columns = [Column(key, key, "always", "", False) for key in ("setting", "sparsity", "suite", "difference", "Holm p")]
    rows = []
    for sparsity in sorted({a.sparsity or 0.0 for a, _ in wanted}):
        for suite_id in suite_ids(entries):
            for pair in compare_pairs([(a, b) for a, b in wanted if a.sparsity == sparsity], suite_id, out):
                words = (pair.a.full_label, f"{sparsity:.0%}", suite_id, difference_cell(pair).full, f"{pair.holm_p:.2g}")
                rows.append({column.key: Cell(None, word) for column, word in zip(columns, words, strict=True)})
    return as_markdown(columns, rows)
