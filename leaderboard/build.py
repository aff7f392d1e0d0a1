"""Builds the page and its exports from a folder of records."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.leaderboard.errors import LeaderboardError, MissingExtra
from prunebench.leaderboard.record import read_records

if TYPE_CHECKING:
    from prunebench.leaderboard.collect import Entry
    from prunebench.leaderboard.compare import Comparisons
    from prunebench.leaderboard.plots.style import Plot

Progress = Callable[[str, int, int], None]
MOST_MODELS_PLOTTED = 4
MOST_ENTRIES_PLOTTED = 200
DRAWN_LIVE = ("score", "tradeoff")
"""Kinds of pictures that the page draws itself, for the race that is shown; these are files only."""


def build(out_dir: Path, *, progress: Progress | None = None) -> Path:
    """See `leaderboard.build_report`."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"the report needs {error.name}; install it with: pip install 'prunebench[report]'.") from error
    return _build(out_dir, progress or (lambda label, done, total: None))


def _build(out_dir: Path, progress: Progress) -> Path:
    from prunebench.leaderboard import exports, ledger, pairs
    from prunebench.leaderboard.collect import Note, collect
    from prunebench.leaderboard.compare import compare
    from prunebench.leaderboard.findings import findings
    from prunebench.leaderboard.page import Content, render
    from prunebench.leaderboard.plots.style import write_csv
    from prunebench.leaderboard.races import race_views
    from prunebench.leaderboard.tables import leaderboard

    progress("read records", 0, 1)
    records, problems = read_records(out_dir)
    progress("read records", 1, 1)
    entries, notes = collect(records)
    notes = [*(Note(p.kind, p.message) for p in problems), *notes]
    comparisons = compare(entries, out_dir, progress)
    notes += comparisons.notes
    main = leaderboard(entries, comparisons)
    numbers, matching = ledger.load()
    lines = ledger.compare_published(entries, comparisons, numbers, matching)
    pair_table, pair_entries = pairs.pairs_table(comparisons)
    folder = out_dir / "leaderboard"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots, plot_note = _plots(_without_ablations(entries, comparisons), out_dir, folder / "plots", progress)
        progress("write tables", 0, 1)
        races = race_views(entries, comparisons)
        downloads, export_note = exports.write_all(folder, main, entries, races, comparisons, write_text)
        if export_note:
            notes.append(Note("exports", export_note))
        ledger_table = ledger.table(lines)
        for name, rows in (("comparisons.csv", pairs.export_rows(comparisons)), ("comparisons_tasks.csv", pairs.task_rows(comparisons))):
            write_csv(folder / name, rows)
            downloads.append((name, name))
        write_text(folder / "published.csv", exports.as_csv(ledger_table.columns, ledger_table.rows))
        downloads.append(("published.csv", "published.csv"))
        progress("write tables", 1, 1)
        content = Content(
            entries=entries,
            comparisons=comparisons,
            main=main,
            pairs=pair_table if pair_table.rows else None,
            pair_entries=pair_entries,
            ledger=ledger_table if lines else None,
            ledger_note=ledger.note(lines, len(numbers) - len(lines)),
            findings=findings(entries, comparisons),
            races=races,
            claims=ledger.claims(lines),
            plots=plots,
            notes=notes,
            downloads=downloads,
            plot_note=plot_note,
        )
        progress("write page", 0, 1)
        page = folder / "index.html"
        write_text(page, render(content))
        progress("write page", 1, 1)
    except OSError as error:
        said = error.strerror or error
        raise LeaderboardError(f"leaderboard folder {folder} can't be written: {said}; free space or fix its rights.") from error
    return page


def _without_ablations(entries: list[Entry], comparisons: Comparisons) -> list[Entry]:
    """What the pictures show: the dense models and each method by its main setting."""
    mains = {e.id for block in comparisons.blocks for e in block.entries}
    ablations = {e.id for block in comparisons.blocks for e in block.ablations} - mains
    return [e for e in entries if e.id not in ablations]


def _plots(entries: list[Entry], out_dir: Path, folder: Path, progress: Progress) -> tuple[list[Plot], str]:
    from prunebench.leaderboard.plots import curves, score, shape
    from prunebench.leaderboard.plots.style import Looks

    plotted = [e for e in entries if e.done and not e.problem]
    models = list(dict.fromkeys((e.model, e.synthetic) for e in plotted))
    looks = Looks(e.line for e in entries if not e.is_dense)
    shown: list[tuple[str, bool]] = []
    drawn = 0
    for key in models[:MOST_MODELS_PLOTTED]:
        drawn += sum((e.model, e.synthetic) == key for e in plotted)
        if shown and drawn > MOST_ENTRIES_PLOTTED:
            break
        shown.append(key)
    draw: list[Callable[[list[Entry]], Plot | None]] = [
        lambda own: score.score_against_sparsity(own, looks, folder),
        lambda own: score.perplexity_against_parameters(own, looks, folder),
        lambda own: score.quality_against(own, looks, folder, "latency"),
        lambda own: score.quality_against(own, looks, folder, "cost"),
        lambda own: shape.layer_shapes(own, folder),
        lambda own: shape.layer_heat_map(own, folder),
        lambda own: shape.agreement(own, out_dir, folder),
        lambda own: curves.training_curves(own, looks, folder),
    ]
    plots = []
    for i, key in enumerate(shown):
        own = [e for e in plotted if (e.model, e.synthetic) == key]
        for j, make in enumerate(draw):
            progress("draw plots", i * len(draw) + j, len(shown) * len(draw))
            plot = make(own)
            if plot is not None:
                if plot.section in DRAWN_LIVE:
                    plot.svg = ""
                plots.append(plot)
    if shown:
        progress("draw plots", len(shown) * len(draw), len(shown) * len(draw))
    left = len(models) - len(shown)
    note = f"Plots of {left} more models are left out; build a page of fewer models to see them." if left > 0 else ""
    return plots, note


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
