"""Builds the page and its exports from a folder of records."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from leaderboard.errors import LeaderboardError, MissingExtra
from leaderboard.record import read_records

Progress = Callable[[str, int, int], None]
MOST_MODELS_PLOTTED = 4


def build(out_dir: Path, *, progress: Progress | None = None) -> Path:
    """See `leaderboard.build_report`."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"the report needs {error.name}; install it with: pip install 'prunebench[report]'.") from error
    return _build(out_dir, progress or (lambda label, done, total: None))


def _build(out_dir: Path, progress: Progress) -> Path:
    from leaderboard.collect import Note, collect
    from leaderboard.compare import compare
    from leaderboard.findings import findings
    from leaderboard.page import Content, render
    from leaderboard.tables import leaderboard

    progress("read records", 0, 1)
    records, problems = read_records(out_dir)
    progress("read records", 1, 1)
    entries, notes = collect(records)
    notes = [*(Note(p.kind, p.message) for p in problems), *notes]
    comparisons = compare(entries, out_dir, progress)
    notes += comparisons.notes
    main = leaderboard(entries, comparisons)
    folder = out_dir / "leaderboard"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots, plot_note = _plots(entries, folder, progress)
        content = Content(
            entries=entries,
            comparisons=comparisons,
            main=main,
            pairs=None,
            pair_entries=[],
            ledger=None,
            ledger_note="",
            findings=findings(entries, comparisons),
            plots=plots,
            notes=notes,
            plot_note=plot_note,
        )
        progress("write page", 0, 1)
        page = folder / "index.html"
        write_text(page, render(content))
        progress("write page", 1, 1)
    except OSError as error:
        raise LeaderboardError(f"leaderboard folder {folder} can't be written: {error.strerror or error}; free space or fix its rights.") from error
    return page


def _plots(entries, folder: Path, progress: Progress):  # type: ignore[no-untyped-def]
    from leaderboard.plots import score, shape
    from leaderboard.plots.style import Looks

    models = list(dict.fromkeys((e.model, e.synthetic) for e in entries if e.done))
    looks = Looks(e.full_label for e in entries if not e.is_dense)
    plots = []
    for i, key in enumerate(models[:MOST_MODELS_PLOTTED]):
        progress("draw plots", i, len(models[:MOST_MODELS_PLOTTED]))
        own = [e for e in entries if (e.model, e.synthetic) == key and e.done]
        plots += [
            score.score_against_sparsity(own, looks, folder / "plots"),
            score.perplexity_against_parameters(own, looks, folder / "plots"),
            score.quality_against(own, looks, folder / "plots", "latency"),
            score.quality_against(own, looks, folder / "plots", "cost"),
            shape.layer_shapes(own, folder / "plots"),
        ]
    left = len(models) - MOST_MODELS_PLOTTED
    note = f"Plots of {left} more models are left out; build a page of one model to see them." if left > 0 else ""
    return [p for p in plots if p is not None], note


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
