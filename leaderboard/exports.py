"""The tables as CSV, Markdown and LaTeX (booktabs), with the very strings that the page shows."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.plots.style import slug, spreadsheet_safe
from prunebench.leaderboard.tables import Cell, Column, Table

SIZES = ("params_total", "params_blocks", "disk_bytes", "macs")
COSTS = ("latency", "decode", "prune_seconds", "training_tokens", "calibration_tokens", "prune_peak", "status")
MOST_BLOCK_TABLES = 400
MOST_MARKDOWN_ROWS = 2000


def as_csv(columns: Sequence[Column], rows: Sequence[dict[str, Cell]]) -> str:
    """One column for the value, one for what stands beside it (interval half-width, note), where there is any."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    with_sub = {c.key for c in columns if any(r[c.key].sub for r in rows)}
    head: list[str] = []
    for column in columns:
        head.append(heading(column))
        if column.key in with_sub:
            head.append(heading(column) + (" ±" if column.key.endswith("|mean") or "|task|" in column.key else " note"))
    writer.writerow([spreadsheet_safe(h) for h in head])
    for row in rows:
        line: list[str] = []
        for column in columns:
            cell = row[column.key]
            line.append(_plain(cell.text))
            if column.key in with_sub:
                line.append(_plain(cell.sub.removeprefix("±")))
        writer.writerow(line)
    return out.getvalue()


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


def as_latex(columns: Sequence[Column], rows: Sequence[dict[str, Cell]], caption: str, is_alone: bool = False) -> str:
    r"""A booktabs table; needs \usepackage{booktabs}."""
    shape = "".join("r" if c.is_number else "l" for c in columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        f"\\caption{{{fmt.latex(caption)}}}",
        f"\\begin{{tabular}}{{{shape}}}",
        "\\toprule",
        " & ".join(fmt.latex(heading(c, is_alone)) for c in columns) + r" \\",
        "\\midrule",
    ]
    lines += [" & ".join(_latex_cell(r[c.key]) for c in columns) + r" \\" for r in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = fmt.latex(cell.text)
    return f"{text} {{\\scriptsize {fmt.latex(cell.sub)}}}" if cell.sub else text


def write_all(folder: Path, table: Table, entries: list[Entry], write: Callable[[Path, str], None]) -> tuple[list[tuple[str, str]], str]:
    """Whole leaderboard, then one table a model, sparsity and suite.

    Returns:
        Links for the page, and a note where not every block got its own files.
    """
    links = []
    for kind, text in (
        ("csv", as_csv(table.columns, table.rows)),
        ("md", as_markdown(table.columns, table.rows[:MOST_MARKDOWN_ROWS])),
        ("tex", as_latex(table.columns, table.rows[:MOST_MARKDOWN_ROWS], _caption(entries, "all measured settings"))),
    ):
        write(folder / f"leaderboard.{kind}", text)
        links.append((f"leaderboard.{kind}", f"leaderboard.{kind}"))
    written, left_out = _blocks(folder / "tables", table, entries, write)
    note = f"{left_out} blocks have no files of their own; leaderboard.csv holds every row." if left_out else ""
    if written:
        links.append((f"tables/ ({written} tables by model, sparsity and suite)", "tables/index.md"))
    return links, note


def _caption(entries: Sequence[Entry], what: str) -> str:
    made_up = "Synthetic records, not measurements. " if any(e.synthetic for e in entries) else ""
    return f"{made_up}{what}; ± is half of the 95 % interval."


def _blocks(folder: Path, table: Table, entries: list[Entry], write: Callable[[Path, str], None]) -> tuple[int, int]:
    by_id = {e.id: e for e in entries}
    groups: dict[tuple[str, float, str, str, bool, str], list[int]] = defaultdict(list)
    dense: dict[tuple[str, bool], list[int]] = defaultdict(list)
    unscored: dict[tuple[str, float, str, bool], list[int]] = defaultdict(list)
    for index, entry_id in enumerate(table.ids):
        entry = by_id[entry_id]
        if entry.is_dense:
            dense[(entry.model, entry.synthetic)].append(index)
        elif entry.race is not None and entry.sparsity is not None:
            if not entry.suites:  # a cell that failed is a row of every table that it was meant for
                unscored[(entry.model, entry.sparsity, entry.basis, entry.synthetic)].append(index)
            for suite in entry.suites:
                groups[(entry.model, entry.sparsity, entry.basis, entry.track, entry.synthetic, suite)].append(index)
    for (model, sparsity, basis, _, synthetic, _), indexes in groups.items():
        indexes += unscored[(model, sparsity, basis, synthetic)]
    if not groups:
        return 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    keys = {c.key: c for c in table.columns}
    listing = ["# Tables by model, sparsity, track and suite", ""]
    names: set[str] = set()
    for group, indexes in list(groups.items())[:MOST_BLOCK_TABLES]:
        model, sparsity, basis, track, synthetic, suite = group
        rows = [table.rows[i] for i in [*dense[(model, synthetic)], *indexes]]
        wanted = ["method", "recovery", *(k for k in keys if k.startswith(f"{suite}|")), *SIZES, *COSTS]
        columns = [keys[k] for k in wanted if k in keys]
        title = f"{fmt.model_label(model)}, {fmt.sparsity(sparsity)} of {basis}, {track}, {suite}"
        base = slug("__".join((slug(fmt.model_label(model)), slug(f"{100 * sparsity:g}"), slug(basis), slug(track), slug(suite))), 150)
        name = base
        for number in range(2, len(names) + 3):
            if name not in names:
                break
            name = f"{base}_{number}"
        names.add(name)
        write(folder / f"{name}.csv", as_csv(columns, rows))
        write(folder / f"{name}.md", f"**{fmt.markdown(title)}**\n\n{as_markdown(columns, rows, True)}")
        write(folder / f"{name}.tex", as_latex(columns, rows, _caption([by_id[table.ids[i]] for i in indexes], title), True))
        listing.append(f"- {fmt.markdown(title)}: [csv]({name}.csv) [md]({name}.md) [tex]({name}.tex)")
    write(folder / "index.md", "\n".join(listing) + "\n")
    return min(len(groups), MOST_BLOCK_TABLES), max(0, len(groups) - MOST_BLOCK_TABLES)
