"""Puts tables, plots, findings and the records themselves into one self-contained HTML file."""

from __future__ import annotations

import base64
import gzip
import json
import math
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Note
from prunebench.leaderboard.compare import Comparisons, Pair
from prunebench.leaderboard.fairness import fairness
from prunebench.leaderboard.families import WORDS
from prunebench.leaderboard.findings import Finding, where
from prunebench.leaderboard.ledger import Claim
from prunebench.leaderboard.pairs import every as every_pair
from prunebench.leaderboard.plots.curves import PER_LAYER, thinned
from prunebench.leaderboard.plots.style import Plot
from prunebench.leaderboard.races import RaceView, first_race, race_data
from prunebench.leaderboard.record import Record
from prunebench.leaderboard.tables import EXPORT, STATUS_WORDS, Cell, Column, Table, cells_table, suite_ids

CHUNK = 50
PAGE_SIZES = {"pairs": 20, "published": 15}
PLAIN_LIMIT = 500_000
"""Up to this many characters the records are put into the page as plain JSON; above it, gzipped."""
MOST_LISTED = 200
SCRIPTS = ("base", "tables", "race")
MOST_CURVE_POINTS = 60
BIBTEX = """@software{prunebench,
  title  = {prunebench: one fair, reproducible race for methods that prune large language models},
  note   = {Every number of this page is traced to one record, and every record to one command},
  year   = {2026}
}"""
FIRST_NOTES = ("set aside", "sparsity", "unreadable", "schema", "invalid", "misplaced")
METHOD = [
    (
        "Intervals",
        "95 %. One task, one seed: Wilson's interval over the items. Suite means: t, from the errors of the tasks. Perplexities: t on "
        "the log scale, with blocks - 1 degrees of freedom, so that 4 blocks give a wide interval. Seeds: where a method was run with "
        "several, their spread (pooled over its settings) is in every interval of it, also of its rows with one seed; the items are "
        "shared by all seeds. Degrees of freedom of several parts are Satterthwaite's.",
    ),
    (
        "One seed",
        "The result of a method that trains (or draws at random) hangs on its seed. With one seed, and no spread of seeds measured "
        "for that method on this model, a row tells about this checkpoint: its interval is over items only, it gets no rank, and no "
        "sentence calls the method better.",
    ),
    (
        "Tests",
        "Methods are compared on the same items by the paired t test over items, and over seeds where their spread is known; single "
        "tasks by the exact McNemar test. Without outcomes per item: Welch's unpaired t, marked as such. No p-value has a floor.",
    ),
    (
        "What is corrected over what",
        "Holm's method, in families: "
        + "; ".join(f"{kind}: {words}" for kind, words in WORDS.items() if kind != "chosen")
        + ". Ablations of a method are no further methods: they make none of the other families larger. The main setting of a method "
        "is the one with most seeds, then the one nearest to all others; never the best. Benjamini-Hochberg values are in the exports.",
    ),
    (
        "Tracks",
        "A race is one model, one sparsity (and what it counts) and one track: no training, or the same number of training tokens "
        "within 5 %, wherever a method spends them: while it prunes or in a recovery.",
    ),
    (
        "Ranks",
        "The places that the corrected tests leave open: 1 + the number of methods that are better, to the number of methods less "
        "those that are worse. No rank without another method on the same items, a standard error, and a dense model above chance. A "
        "win must hold on the tasks that the dense model can do.",
    ),
    (
        "Kept above chance",
        "(score - chance) / (dense - chance) of the mean over the tasks on which the dense model is above chance (one-sided exact "
        "binomial tests, Holm-corrected over the tasks), with Fieller's interval from the paired items. The plain share of the dense "
        "score, chance included, is in the exports, for comparison with papers.",
    ),
    (
        "Detectable difference",
        "The smallest true difference that the test would have found with 80 % probability at the corrected level, from the t "
        "quantiles of the test. Where methods differ by less, the sample was too small to tell.",
    ),
    ("Collapsed", "Above chance on no task (Holm-corrected), or over 10 times the dense perplexity. Never ranked, never called better."),
    ("Chance", "What guessing gives. 'At chance' means that the interval reaches that level."),
    (
        "Sparsity",
        "Parameters removed / dense parameters: of all distinct parameters (total) or of the decoder blocks' projections (blocks).",
    ),
    ("Measured, published, synthetic", "Three different things that never share a column."),
]


@dataclass
class Content:
    """Everything the page shows."""

    entries: list[Entry]
    comparisons: Comparisons
    main: Table
    pairs: Table | None
    pair_entries: list[list[int]]
    ledger: Table | None
    ledger_note: str
    findings: list[Finding]
    races: list[RaceView]
    claims: list[Claim]
    plots: list[Plot]
    notes: list[Note]
    downloads: list[tuple[str, str]] = field(default_factory=list)
    plot_note: str = ""


def render(content: Content) -> str:
    """The page as one string."""
    import jinja2

    web = resources.files("prunebench.leaderboard") / "web"
    environment = jinja2.Environment(autoescape=True, trim_blocks=False, undefined=jinja2.StrictUndefined)
    template = environment.from_string((web / "page.html.j2").read_text(encoding="utf-8"))
    cells, records = cells_table(content.entries)
    script = "".join((web / f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS)
    text = template.render(
        css=(web / "page.css").read_text(encoding="utf-8"),
        js='"use strict";\n(() => {\n' + script + "})();",
        data=script_safe(page_data(content, cells)),
        chunks=record_chunks(records),
        races=content.races,
        bars={view.index: _bar(view) for view in content.races},
        has_matrix=any(view.matrix for view in content.races),
        claims=content.claims,
        bibtex=BIBTEX,
        sections=_sections(content),
        lead=_lead(content.entries),
        synthetic=_synthetic(content.entries),
        empty="" if content.entries else "The folder holds no record yet; run a grid, then build the page again.",
        findings=content.findings[:MOST_LISTED],
        plots=content.plots,
        plot_note=content.plot_note,
        fairness=_fairness(content),
        has_pairs=content.pairs is not None,
        pairs_note=_pairs_note(content.comparisons),
        has_ledger=content.ledger is not None,
        ledger_note=content.ledger_note,
        **_unfinished(content.entries),
        notes=[Note(n.kind, fmt.short(n.text, 400)) for n in _by_weight(content.notes)[:MOST_LISTED]],
        notes_more=_more(len(content.notes), "notes"),
        method=METHOD,
        definitions=_definitions(content.entries),
        downloads=content.downloads,
        footer=_footer(content.entries),
    )
    return text.encode("utf-8", "replace").decode("utf-8")


def _by_weight(notes: list[Note]) -> list[Note]:
    """Notes on rows and records that are missing or compared with nothing first: however many others there are, these are shown."""
    return sorted(notes, key=lambda note: note.kind not in FIRST_NOTES)


def _more(count: int, what: str) -> str:
    return f"{count - MOST_LISTED} more {what} are left out here; the first {MOST_LISTED} are shown." if count > MOST_LISTED else ""


def _sections(content: Content) -> list[tuple[str, str]]:
    found = [("answer", "Answer"), ("table", "Table")] if content.races else []
    if any(view.matrix for view in content.races):
        found.append(("pairs", "Who beats whom"))
    if content.races:
        found.append(("tradeoff", "Cost"))
    if content.claims:
        found.append(("claims", "Claims"))
    return [*found, ("more", "Everything else")]


@dataclass(frozen=True)
class Bar:
    """The scale of the interval bars of a race's scores, in percent of their width."""

    low: float
    high: float
    is_log: bool

    def share(self, value: float) -> float:
        if not math.isfinite(value):
            return 100.0
        return 100 * min(max((_scaled(value, self.is_log) - self.low) / max(self.high - self.low, 1e-12), 0.0), 1.0)

    def at(self, value: float) -> str:
        return f"{self.share(value):.1f}"

    def width(self, low: float, high: float) -> str:
        return f"{self.share(high) - self.share(low):.1f}"


def _bar(view: RaceView) -> Bar | None:
    """None where no row has an interval."""
    mean = view.block.entries[0].suites[view.block.suite].mean
    is_log = mean is not None and mean.kind == "perplexity"
    found = [end for row in view.rows for end in (row.cells["score"].low, row.cells["score"].high)]
    ends = [_scaled(end, is_log) for end in found if end is not None and math.isfinite(end)]
    return Bar(min(ends), max(ends), is_log) if ends else None


def _scaled(value: float, is_log: bool) -> float:
    return math.log(max(value, 1e-9)) if is_log else value


def _lead(entries: list[Entry]) -> str:
    if not entries:
        return "Nothing measured yet."
    models = list(dict.fromkeys(fmt.model_label(e.model) for e in entries))
    methods = {e.method for e in entries if not e.is_dense}
    levels = sorted({e.sparsity for e in entries if e.race and e.sparsity is not None})
    cells = [r for e in entries for r in e.records]
    done = sum(r.run.status == "done" for r in cells)
    shown = ", ".join(models[:4]) + (f" and {len(models) - 4} more" if len(models) > 4 else "")
    span = " and ".join(fmt.sparsity(v) for v in levels) if len(levels) < 3 else f"{fmt.sparsity(levels[0])} to {fmt.sparsity(levels[-1])}"
    what = f"{len(methods)} pruning method{'s' if len(methods) != 1 else ''}" if methods else "No pruned model"
    where = f" at {span} sparsity" if levels else ""
    return (
        f"{what} on {shown}{where}: {done} of {len(cells)} cells finished. Every number is "
        "traced to its records, with its interval, and every record to one command."
    )


def _synthetic(entries: list[Entry]) -> str:
    made_up = sum(e.synthetic for e in entries)
    if not made_up:
        return ""
    part = "Every record" if made_up == len(entries) else f"{made_up} of {len(entries)} rows"
    return f"{part} on this page was made by a script to try the page; these are not measurements."


def _unfinished(entries: list[Entry]) -> dict[str, Any]:
    found = []
    index = 0
    for entry in entries:
        for record in entry.records:
            if record.run.status != "done":
                found.append(
                    {
                        "status": STATUS_WORDS[record.run.status],
                        "title": f"{entry.title}, seed {record.run.seed}",
                        "reason": fmt.short(record.run.reason, 400) or "no reason recorded",
                        "index": index,
                    }
                )
            index += 1
    more = _more(len(found), "cells; the table lists them all") if len(found) > MOST_LISTED else ""
    return {"unfinished": found[:MOST_LISTED], "unfinished_more": more}


def _definitions(entries: list[Entry]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for entry in entries:
        for suite in entry.suites.values():
            text = suite.definition
            if not text and suite.mean is not None:
                text = suite.mean.definition
            name = suite.name + (f" (version {fmt.short(suite.version, 16)})" if suite.version else "")
            if text:
                found.setdefault(name, fmt.short(text, 600))
    return sorted(found.items())


def _fairness(content: Content) -> list[tuple[str, str]]:
    """What is equal in each race and what is not; races whose suites say the same are told once."""
    found: dict[tuple[str, str], list[str]] = {}
    single = len({e.model for e in content.entries}) == 1
    for block in content.comparisons.blocks:
        if len(block.entries) > 1:
            found.setdefault((where(block, single), fairness(block, content.entries).sentence), []).append(block.name)
    told = [(f"{race}, {', '.join(suites)}", sentence) for (race, sentence), suites in found.items()]
    return told[:MOST_LISTED]


def _pairs_note(comparisons: Comparisons) -> str:
    counts = [len(b.pairs) for b in comparisons.blocks if b.pairs]
    ablations = sum(len(b.ablation_pairs) for b in comparisons.blocks)
    if not counts and not ablations:
        return ""
    families = [f"{sum(counts)} pairs of methods in {len(counts)} races and suites"] if counts else []
    families += [f"{ablations} ablations against their method's main setting"] if ablations else []
    return (
        f"{', '.join(families)}, and each method against the dense model: each of these families is corrected for itself. "
        "A positive difference means that the first one's value is higher."
    )


def _footer(entries: list[Entry]) -> str:
    records = [r for e in entries for r in e.records]
    commits = sorted({r.provenance.commit[:12] for r in records if r.provenance.commit})
    finished = max((r.run.finished_at.isoformat(timespec="minutes") for r in records if r.run.finished_at), default="")
    parts = [f"prunebench, {len(records)} records"]
    if finished:
        parts.append(f"last finished {finished}")
    if commits:
        parts.append("code " + ", ".join(fmt.short(c, 12) for c in commits[:4]) + (" ..." if len(commits) > 4 else ""))
    return "; ".join(parts) + ". This file makes no network request."


def page_data(content: Content, cells: Table) -> dict[str, Any]:
    """What the script of the page reads."""
    suites = _named_suites(content.entries)
    main = table_data(content.main, content.entries, "settings, seeds pooled", "entry", suites)
    every = table_data(cells, content.entries, "every cell", "cell", [])
    tables: dict[str, Any] = {"main": [main, every]}
    if content.pairs is not None:
        tasks = [_task_rows(pair) for _, pair in every_pair(content.comparisons)]
        tables["pairs"] = [{**table_data(content.pairs, [], "pairs", "", []), "pair": content.pair_entries, "tasks": tasks}]
    if content.ledger is not None:
        tables["published"] = [table_data(content.ledger, [], "published", "", [])]
    starts: list[list[int]] = []
    index = 0
    for entry in content.entries:
        starts.append(list(range(index, index + len(entry.records))))
        index += len(entry.records)
    titles = [e.title for e in content.entries]
    data = {"tables": tables, "entries": starts, "titles": titles, "suites": suites, "chunkSize": CHUNK}
    return data | race_data(content.races, first_race(content.races, content.comparisons))


def _task_rows(pair: Pair) -> Any:
    """The tests of a pair's single tasks as a table of texts; 0 stands for none."""
    rows = [[t.task, str(t.a_only), str(t.b_only), fmt.p_value(t.p_value), fmt.p_value(t.holm_p)] for t in pair.tasks]
    return rows or 0


_FACETS = ("model", "method", "sparsity", "recovery", "status", "suite", "track", "family", "kind", "verdict", "paper")
_OPTIONAL = ("model", "recovery", "track")


def _named_suites(entries: list[Entry]) -> list[tuple[str, str]]:
    """Id and name of every suite, in the order of the table."""
    names = {suite.id: f"synthetic: {suite.name}" if suite.synthetic else suite.name for e in entries for suite in e.suites.values()}
    return [(suite, names[suite]) for suite in suite_ids(entries)]


def table_data(table: Table, entries: list[Entry], name: str, opens: str, suites: list[tuple[str, str]]) -> dict[str, Any]:
    views: list[tuple[str, str]] = []
    groups = {c.group for c in table.columns}
    if "suite" in groups and suites:
        views.append(("overview", "overview"))
        views += suites
    views += [(g, label) for g, label in (("size", "size"), ("speed", "speed"), ("cost", "cost")) if g in groups]
    if views:
        views.append(("all", "everything"))
    shown = [c for c in table.columns if c.group != EXPORT]
    columns = [_column_data(c, table) for c in shown]
    if not suites:
        views = []
        columns = [{**c, "group": "always"} for c in columns]
    return {
        "name": name,
        "opens": opens,
        "views": views,
        "facets": [c.key for c in shown if c.key in _FACETS],
        "columns": columns,
        "rows": [[_cell_data(row[c.key]) for c in shown] for row in table.rows],
        "ids": table.ids,
        "pageSize": PAGE_SIZES.get(name, 50),
    }


def _column_data(column: Column, table: Table) -> dict[str, Any]:
    data: dict[str, Any] = {"key": column.key, "label": column.label, "group": column.group, "views": _views(column)}
    if column.title:
        data["title"] = fmt.short(column.title, 500)
    if column.is_number:
        data["num"] = 1
    if column.is_lower_better:
        data["lower"] = 1
    if column.key in _OPTIONAL:
        data["optional"] = 1
    if not column.is_number and column.group == "wrap":
        data["wrap"] = 1
        data["group"] = "always"
    if column.key.endswith("|mean"):
        rank = column.key.removesuffix("mean") + "rank"
        if any(c.key == rank for c in table.columns):
            data["rank"] = rank
            data["rankTip"] = "places that the corrected tests leave open"
    if any(row[column.key].low is not None for row in table.rows):
        data["bar"] = "log" if column.is_lower_better else "linear"
    return data


def _views(column: Column) -> list[str]:
    if column.key.endswith("|mean"):
        return ["overview", column.suite]
    if column.key.endswith("|rank"):
        return []
    return [column.group]


def _cell_data(cell: Cell) -> Any:
    if cell.sort is None and cell.text == fmt.MISSING and not cell.sub and not cell.tip:
        return 0
    sort = None if isinstance(cell.sort, float) and not math.isfinite(cell.sort) else cell.sort  # JSON has no infinity
    data: list[Any] = [sort, cell.text, cell.sub, cell.tip]
    if cell.low is not None and cell.high is not None and math.isfinite(cell.low) and math.isfinite(cell.high):
        return [*data, cell.low, cell.high]
    while len(data) > 2 and not data[-1]:
        data.pop()
    return data


def slim(record: Record) -> Record:
    """The record as the page carries it: of its curves those of the whole model, thinned; the file beside the page has them all."""
    curves = {
        name: thinned([(x, y) for x, y in points], MOST_CURVE_POINTS)
        for name, points in record.metrics.curves.items()
        if not PER_LAYER.search(name)
    }
    return record.model_copy(update={"metrics": record.metrics.model_copy(update={"curves": curves})})


def record_chunks(records: list[Record]) -> list[dict[str, str]]:
    """The records in row order, `CHUNK` to a piece; plain when small enough to be read by eye."""
    texts = [slim(r).model_dump_json() for r in records]
    is_plain = sum(map(len, texts)) <= PLAIN_LIMIT
    chunks = []
    for start in range(0, len(texts), CHUNK):
        text = "[" + ",\n".join(texts[start : start + CHUNK]) + "]"
        if is_plain:
            chunks.append({"encoding": "plain", "text": _escape(text)})
        else:
            packed = gzip.compress(text.encode("utf-8", "replace"), compresslevel=5, mtime=0)
            chunks.append({"encoding": "gzip", "text": base64.b64encode(packed).decode("ascii")})
    return chunks


def script_safe(data: Any) -> str:
    """JSON that can't end its script element."""
    return _escape(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _escape(text: str) -> str:
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
