"""What is taken away from the page: CSV at full precision, Markdown and LaTeX tables, lm-eval results and model-card blocks."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.cards import lm_eval_results, model_card
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.compare import Comparisons
from prunebench.leaderboard.plots.style import slug, spreadsheet_safe
from prunebench.leaderboard.races import RaceView
from prunebench.leaderboard.record import Record
from prunebench.leaderboard.tables import EXPORT, Cell, Column, Table

MOST_MARKDOWN_ROWS = 2000
MOST_RACE_TABLES = 400
MOST_RECORD_FILES = 400


def as_csv(columns: Sequence[Column], rows: Sequence[dict[str, Cell]], cells: Sequence[str] | None = None) -> str:
    """For programs: full precision, the ends of intervals in columns of their own, and the ids of the cells behind each row.

    Args:
        cells: of each row the ids of its cells, the first column; None leaves it out.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    with_ends = {c.key for c in columns if any(r[c.key].low is not None for r in rows)}
    with_note = {c.key for c in columns if any(_note(r[c.key]) for r in rows)}
    head = ["cells"] if cells is not None else []
    for column in columns:
        name = heading(column)
        head += [name, *([f"{name} low", f"{name} high"] if column.key in with_ends else [])]
        head += [f"{name} note"] if column.key in with_note else []
    writer.writerow([spreadsheet_safe(h) for h in head])
    for i, row in enumerate(rows):
        line = [cells[i]] if cells is not None else []
        for column in columns:
            cell = row[column.key]
            line.append(_value(cell, column))
            if column.key in with_ends:
                line += ["" if end is None else repr(end) for end in (cell.low, cell.high)]
            if column.key in with_note:
                line.append(_plain(_note(cell)))
        writer.writerow(line)
    return out.getvalue()


def _value(cell: Cell, column: Column) -> str:
    if column.is_number and isinstance(cell.sort, int | float) and not column.key.endswith("rank"):
        return repr(cell.sort)
    return _plain(cell.text)


def _note(cell: Cell) -> str:
    """What stands beside a value, where it is no interval."""
    return "" if cell.low is not None or cell.sub.startswith("±") else cell.sub


def _plain(text: str) -> str:
    """A true minus for the eye is a hyphen for a spreadsheet; the digits stay."""
    if text == fmt.MISSING:
        return ""
    text = str(text).replace("−", "-")
    return text if _is_number(text) else str(spreadsheet_safe(text))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def heading(column: Column, is_alone: bool = False) -> str:
    """Label with its suite where the label alone would not say it (`is_alone`: one suite in the whole table)."""
    if is_alone:
        return column.label
    if column.suite and not column.key.endswith("|mean"):
        return f"{column.suite}: {column.label}"
    if "|" in column.key and not column.key.endswith("|mean"):
        return f"{column.key.split('|')[0]}: {column.label}"
    return column.label


def as_markdown(columns: Sequence[Column], rows: Sequence[dict[str, Cell]], is_alone: bool = False) -> str:
    head = "| " + " | ".join(fmt.markdown(heading(c, is_alone)) for c in columns) + " |"
    rule = "|" + "|".join(" ---: " if c.is_number else " --- " for c in columns) + "|"
    body = ["| " + " | ".join(fmt.markdown(r[c.key].full) for c in columns) + " |" for r in rows]
    return "\n".join([head, rule, *body]) + "\n"


def as_latex(view: RaceView, comparisons: Comparisons) -> str:
    r"""The table of one race for a paper: fits a column, the best in bold with all that tie with it; needs \usepackage{booktabs}.

    Compiles with pdflatex and xelatex: every character that a pdflatex without further packages lacks is written in another way.
    """
    columns = [c for c in view.columns if c.key not in LATEX_LEFT_OUT]
    shape = "".join("r" if c.is_number else "l" for c in columns)
    synthetic = "Synthetic records, not measurements. " if view.block.synthetic else ""
    caption = f"{synthetic}{view.title}. {CAPTION}"
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "\\centering\\small",
        "\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{fmt.latex(caption)}}}",
        f"\\label{{tab:{re.sub(r'[^a-z0-9]+', '-', view.hash.lower()).strip('-')}}}",
        f"\\begin{{tabular}}{{{shape}}}",
        "\\toprule",
        " & ".join(fmt.latex(LATEX_HEADS.get(c.key, c.label)) for c in columns) + r" \\",
        "\\midrule",
    ]
    for row in view.rows:
        if row.ablation_of is None:
            rank = comparisons.ranks.get((row.entry.id, view.block.suite))
            best = rank is not None and rank.low == 1
            lines.append(" & ".join(_latex_cell(row.cells[c.key], c.key == "score", best) for c in columns) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def _latex_cell(cell: Cell, is_score: bool, is_best: bool) -> str:
    text = fmt.latex(cell.text)
    if not is_score:
        return text
    text = f"\\textbf{{{text}}}" if is_best else text
    return f"{text} {{\\scriptsize {fmt.latex(cell.sub)}}}" if cell.sub else text


CAPTION = "± is half of the 95 % interval; bold: no method is significantly better."
LATEX_LEFT_OUT = ("place", "latency", "tokens")
LATEX_HEADS = {"kept": "Kept", "ratio": "× dense ppl", "size": "Params"}


def write_all(
    folder: Path,
    table: Table,
    entries: list[Entry],
    views: list[RaceView],
    comparisons: Comparisons,
    write: Callable[[Path, str], None],
) -> tuple[list[tuple[str, str]], str]:
    """The whole leaderboard, a table of each race, and of each finished record what the harness and the hub read.

    Returns:
        Links for the page, and a note where something did not get files of its own.
    """
    by_id = {e.id: e for e in entries}
    cells = [" ".join(r.run.cell_id for r in by_id[i].records) for i in table.ids]
    write(folder / "leaderboard.csv", as_csv(table.columns, table.rows, [str(spreadsheet_safe(c)) for c in cells]))
    shown = [c for c in table.columns if c.group != EXPORT]
    write(folder / "leaderboard.md", as_markdown(shown, table.rows[:MOST_MARKDOWN_ROWS]))
    write(folder / "leaderboard.tex", "\n".join(as_latex(view, comparisons) for view in views[:MOST_RACE_TABLES]))
    links = [(f"leaderboard.{kind}", f"leaderboard.{kind}") for kind in ("csv", "md", "tex")]
    if views:
        _races(folder / "tables", views[:MOST_RACE_TABLES], comparisons, write)
        links.append((f"tables/ ({min(len(views), MOST_RACE_TABLES)} tables, one a race)", "tables/index.md"))
    left = [f"{len(views) - MOST_RACE_TABLES} races have no table of their own"] if len(views) > MOST_RACE_TABLES else []
    done = [record for entry in entries for record in entry.done if record.metrics.scores]
    if done:
        _records(folder / "records", done[:MOST_RECORD_FILES], write)
        links.append(("records/ (lm-eval results and model-card blocks)", "records/index.md"))
    if len(done) > MOST_RECORD_FILES:
        left.append(f"{len(done) - MOST_RECORD_FILES} records have no results.json")
    return links, f"{'; '.join(left)}; leaderboard.csv holds every row." if left else ""


def _races(folder: Path, views: list[RaceView], comparisons: Comparisons, write: Callable[[Path, str], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listing = ["# Tables, one a race", ""]
    for view in views:
        name = slug(view.hash.replace("/", "__"), 150) + f"_{view.index}"
        columns = [Column(c.key, c.label, "always", c.title, c.is_number, is_lower_better=c.is_lower_better) for c in view.columns]
        rows = [row.cells for row in view.rows]
        ids = [" ".join(r.run.cell_id for r in row.entry.records) for row in view.rows]
        write(folder / f"{name}.csv", as_csv(columns, rows, [str(spreadsheet_safe(i)) for i in ids]))
        write(
            folder / f"{name}.md",
            f"**{fmt.markdown(view.title)}**\n\n{as_markdown(columns, rows, True)}\n{fmt.markdown(view.fairness.sentence)}\n",
        )
        write(folder / f"{name}.tex", as_latex(view, comparisons))
        listing.append(f"- {fmt.markdown(view.title)}: [csv]({name}.csv) [md]({name}.md) [tex]({name}.tex)")
    write(folder / "index.md", "\n".join(listing) + "\n")


def _records(folder: Path, records: list[Record], write: Callable[[Path, str], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listing = ["# Records for other tools", "", "`results.json` is what lm-eval writes, `card.md` is the block that the hub reads.", ""]
    for record in records:
        name = slug(record.run.cell_id, 60)
        write(folder / f"{name}.results.json", json.dumps(lm_eval_results(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write(folder / f"{name}.card.md", model_card(record))
        about = f"{fmt.short(record.run.method)} {fmt.model_label(record.run.model)}"
        listing.append(f"- {fmt.markdown(about)}: [results.json]({name}.results.json) [card.md]({name}.card.md)")
    write(folder / "index.md", "\n".join(listing) + "\n")
