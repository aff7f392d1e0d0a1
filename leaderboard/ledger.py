"""Published numbers beside ours, where model, variant and protocol match: two columns, one verdict, never one column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.compare import Comparisons
from prunebench.leaderboard.scores import Suite
from prunebench.leaderboard.statistics import Interval, t_interval
from prunebench.leaderboard.tables import Cell, Column, Table, number_cell
from prunebench.leaderboard.variants import flatten

SPARSITY_TOLERANCE = 0.005
EXCERPT = "search excerpt"
NOT_ESTABLISHED = "not established"


@dataclass(frozen=True)
class Published:
    """One number of one paper.

    Attributes:
        seen: in what it was seen (figure, text, abstract, run log, search excerpt).
        metrics: how sure it is which metric the number is ('inferred', or empty: stated).
        relation: 'equals', or 'at least' for a claim.
    """

    paper: str
    table: str
    table_id: str
    source: str
    seen: str
    metrics: str
    counting: str
    model: str
    method: str
    sparsity: float | None
    params_kept: str
    finetuned: bool | None
    verified: bool
    comparable: bool
    note: str
    protocol: str | None
    quantity: str
    metric: str
    value: float
    unit: str
    relation: str = "equals"


@dataclass(frozen=True)
class Measured:
    """Our number for a published one, in its unit."""

    value: float
    interval: Interval | None
    row: str
    text: str


@dataclass(frozen=True)
class Line:
    """One published number with what we measured, if anything."""

    published: Published
    measured: Measured | None
    verdict: str
    why: str


@dataclass(frozen=True)
class Claim:
    """One claim of a paper's abstract, and what our records say to it."""

    text: str
    ours: str
    verdict: str
    kind: str
    why: str


CLAIM_TABLE = "claims in the abstract"


def claims(lines: list[Line]) -> list[Claim]:
    """Every claim with met, not met, undecided, or that it can't be tested here, and because of what."""
    found = []
    for line in lines:
        p = line.published
        if p.table != CLAIM_TABLE:
            continue
        amount = f"{'at least ' if p.relation == 'at least' else 'up to '}{p.value:g} {p.unit}".strip()
        what = "share of the dense score" if p.quantity == "retention" else p.quantity
        size = "" if p.sparsity is None else f" at {fmt.sparsity(p.sparsity)}"
        text = f"{p.method} on {p.model}{size}: {what} {amount} (arXiv {p.paper})"
        ours = fmt.MISSING
        if line.measured is not None:
            half = f" ±{fmt.fixed(line.measured.interval.half_width, 1)}" if line.measured.interval else ""
            ours = line.measured.text + half
        if line.verdict in ("met", "not met", "undecided"):
            found.append(Claim(text, ours, line.verdict, line.verdict, line.why))
        else:
            found.append(Claim(text, ours, "can't be tested here", "untested", line.why))
    return found


def load() -> tuple[list[Published], dict[str, Any]]:
    """Every published number, and the table of what matches."""
    import yaml

    numbers: list[Published] = []
    folder = resources.files("prunebench.leaderboard.published")
    matching: dict[str, Any] = yaml.safe_load((folder / "matching.yaml").read_text(encoding="utf-8"))
    files = sorted((f for f in folder.iterdir() if f.name.startswith("arxiv_") and f.name.endswith(".yaml")), key=lambda f: f.name)
    for file in files:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for table in content["tables"]:
            for row in table["rows"]:
                for number in row["numbers"]:
                    numbers.append(_published(content["paper"], table, row, number))
    return numbers, matching


def _published(paper: str, table: dict[str, Any], row: dict[str, Any], number: dict[str, Any]) -> Published:
    return Published(
        paper=str(paper),
        table=table["table"],
        table_id=table["id"],
        source=table["source"],
        seen=table["seen"],
        metrics="inferred" if str(table.get("metrics_confidence", "")).startswith("inferred") else "",
        counting=table["counting"],
        model=row["model"],
        method=row["method"],
        sparsity=row["sparsity"],
        params_kept=str(row.get("params_kept", "")),
        finetuned=row["finetuned"],
        verified=row["verified"],
        comparable=row.get("comparable", True),
        note=row.get("note", ""),
        **number,
    )


def compare_published(entries: list[Entry], comparisons: Comparisons, numbers: list[Published], matching: dict[str, Any]) -> list[Line]:
    """A verdict for every verified number; recalled ones are left out."""
    return [_line(entries, comparisons, n, matching) for n in numbers if n.verified]


def _line(entries: list[Entry], comparisons: Comparisons, number: Published, matching: dict[str, Any]) -> Line:
    rows = _rows(entries, comparisons, number, matching)
    if isinstance(rows, tuple):
        return Line(number, None, *rows)
    for entry in rows:
        measured = _measured(entry, comparisons, number)
        if measured is not None:
            return _judged(number, measured, matching["margins"])
    return Line(number, None, "not run", f"{number.protocol} was not evaluated on the whole split")


def _rows(entries: list[Entry], comparisons: Comparisons, number: Published, matching: dict[str, Any]) -> list[Entry] | tuple[str, str]:
    """The rows that a number may be compared with, main settings first; or the verdict, and why there are none."""
    if not number.comparable:
        return "not comparable", number.note
    if number.seen == EXCERPT:
        return "not comparable", "only an excerpt of the source was seen"
    models = [m.lower() for m in matching["models"].get(number.model, [])]
    if not models:
        return "not run", f"the paper's model ({number.model}) matches no single checkpoint"
    real = [e for e in entries if not e.synthetic and not e.problem and _model_matches(e.model, models)]
    if not real:
        return "not run", f"no record of {number.model}"
    wanted = matching["tables"].get(number.table_id, {}).get(number.method) or matching["methods"].get(number.method)
    if wanted is None:
        return "not run", f"{number.method} is not among the methods here, or which variant it is was {NOT_ESTABLISHED}"
    if number.protocol is None:
        return "not run", "no protocol here measures this in the paper's way"
    method, settings = wanted["method"], wanted.get("settings", {})
    mine = [e for e in real if e.method == method and e.done]
    if not mine:
        return "not run", f"no finished record of {method} on {number.model}"
    if method == "dense":
        return mine
    mine = [e for e in mine if _has_settings(e, settings)]
    if not mine:
        words = ", ".join(f"{key} {value}" for key, value in settings.items())
        return "not run", f"{method} was not run in the paper's variant ({words})"
    if number.finetuned is None:
        return "not comparable", "the source doesn't say whether the model was fine-tuned"
    mine = [e for e in mine if e.is_tuned == number.finetuned]
    if not mine:
        return "not run", "not run with" + ("" if number.finetuned else "out") + " fine-tuning"
    if number.counting not in ("total", "blocks"):
        return "not comparable", f"what the paper's sparsity counts was {NOT_ESTABLISHED}"
    mine = [e for e in mine if _sparsity_matches(e, number)]
    if not mine:
        return "not run", "not run at this sparsity by this counting rule"
    mains = {e.id for block in comparisons.blocks for e in block.entries}
    return sorted(mine, key=lambda e: (e.id not in mains, e.id))


def _model_matches(name: str, wanted: list[str]) -> bool:
    lowered = name.lower().rstrip("/")
    return lowered in wanted or lowered.rsplit("/", 1)[-1] in {w.rsplit("/", 1)[-1] for w in wanted}


def _has_settings(entry: Entry, settings: Mapping[str, Any]) -> bool:
    """The row is this variant; a record that does not tell its settings is none."""
    config = entry.records[0].run.config.get("method_config")
    mine = flatten(config) if isinstance(config, Mapping) else {}
    return all(mine.get(key) == value for key, value in settings.items())


def _sparsity_matches(entry: Entry, number: Published) -> bool:
    if number.sparsity is None or entry.sparsity is None or entry.basis != number.counting:
        return False
    return abs(entry.sparsity - number.sparsity) <= SPARSITY_TOLERANCE


def _measured(entry: Entry, comparisons: Comparisons, number: Published) -> Measured | None:
    scale = 100.0 if number.unit == "%" else 1.0
    for suite in entry.suites.values():
        if suite.protocol != number.protocol or suite.is_limited:
            continue
        found = _quantity(entry, suite, comparisons, number)
        if found is not None:
            value, interval = found
            if interval is not None:
                interval = Interval(scale * interval.low, scale * interval.high, interval.method)
            text = f"{scale * value:.1f}" if number.unit == "%" else fmt.significant(value, 4)
            return Measured(scale * value, interval, entry.full_label, text)
    return None


def _quantity(entry: Entry, suite: Suite, comparisons: Comparisons, number: Published) -> tuple[float, Interval | None] | None:
    if number.quantity == "mean":
        return None if suite.mean is None else (suite.mean.value, suite.mean.interval)
    if number.quantity == "retention":
        kept = comparisons.of_dense.get((entry.id, suite.id))
        return None if kept is None else (kept.value, kept.interval)
    score = suite.tasks.get(number.quantity)
    if score is None:
        return None
    if score.metric == number.metric:
        return score.value, score.interval
    return _other_metric(suite, number)


def _other_metric(suite: Suite, number: Published) -> tuple[float, Interval | None] | None:
    """Another metric of the task than the protocol's, of the first seed."""
    for task in suite.scored[0][1].tasks:
        found = task.all_metrics.get(number.metric)
        if task.task == number.quantity and found is not None:
            known = found.stderr is not None and task.n > 1
            return found.value, t_interval(found.value, found.stderr or 0.0, task.n - 1) if known else None
    return None


def _judged(number: Published, measured: Measured, margins: Mapping[str, float]) -> Line:
    """The verdict by a margin and our interval: equal or met when all of the interval says so, not when none of it does.

    Source: two one-sided tests, D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987), by the 95 %
    interval.
    """
    if measured.interval is None:
        return Line(number, measured, "no interval", "our score has no standard error")
    margin, words = _margin(number, margins)
    low, high = measured.interval.low, measured.interval.high
    least, most = number.value - margin, number.value + margin
    digits = 3 if number.unit == "%" else 4
    ours = f"ours is {measured.text} of {measured.row}, 95 % interval {fmt.significant(low, digits)} to {fmt.significant(high, digits)}"
    if number.relation == "at least":
        verdict = "met" if low >= least else "not met" if high < least else "undecided"
    else:
        verdict = "reproduced" if least <= low and high <= most else "differs" if high < least or low > most else "undecided"
    gap = f"by {measured.value - number.value:+.2f}; " if verdict in ("differs", "not met") else ""
    wide = "; our interval reaches over the margin: more items would tell" if verdict == "undecided" else ""
    return Line(number, measured, verdict, f"{gap}{ours}; margin {words}{wide}")


def _margin(number: Published, margins: Mapping[str, float]) -> tuple[float, str]:
    """How far ours may lie beside the printed number, and that in words."""
    if number.unit == "ppl":
        return margins["perplexity"] * number.value, f"{100 * margins['perplexity']:g} %"
    kind = number.quantity if number.quantity in ("mean", "retention") else "task"
    return margins[kind], f"{margins[kind]:g} point{'s' if margins[kind] != 1 else ''}"


def table(lines: list[Line]) -> Table:
    """The ledger as a table of the page."""
    columns = [
        Column("quantity", "Number", "always", "what the number is", False),
        Column("model", "Model", "always", "as the paper names it", False),
        Column("method", "Method", "always", "as the paper names it", False),
        Column("sparsity", "Sparsity", "always", "as the paper states it, and what it counts"),
        Column("tuned", "Tuned", "always", "fine-tuned, while it was pruned or after", False),
        Column("published", "Published", "always", "number printed in the paper; ≥ is a claim"),
        Column("measured", "Measured here", "always", "our record, 95 % interval"),
        Column("verdict", "Verdict", "always", "by the margin that stands in the reason, and our interval", False),
        Column("why", "Why", "wrap", "reason of the verdict", False),
        Column("seen", "Seen in", "always", "how the number was seen", False),
        Column("paper", "Paper", "always", "arXiv number", False),
        Column("table", "Table", "always", "table of the paper; its source in the tip", False),
    ]
    rows = [_cells(line) for line in lines]
    return Table(columns, rows, list(range(len(rows))))


def _cells(line: Line) -> dict[str, Cell]:
    p = line.published
    quantity = "suite mean" if p.quantity == "mean" else p.quantity
    measured = Cell(None, fmt.MISSING)
    if line.measured is not None:
        half = line.measured.interval.half_width if line.measured.interval else None
        sub = "" if half is None else f"±{fmt.fixed(half, 1) if p.unit == '%' else fmt.significant(half, 2)}"
        measured = Cell(line.measured.value, line.measured.text, sub)
    sparsity = fmt.percent(p.sparsity, 1).replace(".0 %", " %") if p.sparsity is not None else (p.params_kept or fmt.MISSING)
    tuned = "yes" if p.finetuned else "no" if p.finetuned is not None else fmt.MISSING
    metric = "" if p.metric == "mean of tasks" else p.metric
    metric += (", " if metric else "") + "metrics inferred" if p.metrics else ""
    sign = "≥ " if p.relation == "at least" else ""
    return {
        "quantity": Cell(quantity, quantity, metric),
        "paper": Cell(p.paper, p.paper),
        "model": Cell(p.model, p.model),
        "method": Cell(p.method, p.method),
        "sparsity": Cell(p.sparsity, "dense" if p.method == "dense" else sparsity, "" if p.method == "dense" else p.counting),
        "tuned": Cell(tuned, tuned),
        "published": number_cell(p.value, lambda v: f"{sign}{v:g}"),
        "measured": measured,
        "verdict": Cell(line.verdict, line.verdict),
        "why": Cell(line.why, line.why),
        "seen": Cell(p.seen, p.seen),
        "table": Cell(p.table, p.table_id, "", f"{p.table}; {p.source}" + (f"; {p.note}" if p.note else "")),
    }


def note(lines: list[Line], left_out: int) -> str:
    """One sentence over the ledger."""
    by_kind: dict[str, int] = {}
    for line in lines:
        by_kind[line.published.seen] = by_kind.get(line.published.seen, 0) + 1
    excerpts = by_kind.pop(EXCERPT, 0)
    opened = ", ".join(f"{count} in a {kind}" if kind != "text" else f"{count} in a text" for kind, count in sorted(by_kind.items()))
    text = f"{len(lines) - excerpts} numbers seen in an opened source ({opened}). "
    if excerpts:
        text += f"{excerpts} more were seen in a search excerpt only and are compared with nothing. "
    counts = {v: sum(line.verdict == v for line in lines) for v in ("reproduced", "differs", "met", "not met", "undecided")}
    if any(line.measured for line in lines):
        found = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        text += f"{sum(line.measured is not None for line in lines)} have a matching record here: {found or 'none with an interval'}. "
    else:
        text += "None has a matching record here yet: model, variant, protocol and counting rule must be the same. "
    text += "A number is reproduced, or a claim met, when our whole 95 % interval lies within the stated margin. "
    return text + f"{left_out} numbers that could only be recalled, not seen, are left out. Published and measured never share a column."
