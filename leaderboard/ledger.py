"""Published numbers beside ours, where model and protocol match: two columns, one verdict, never one column."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Score
from prunebench.leaderboard.compare import Comparisons
from prunebench.leaderboard.record import Record
from prunebench.leaderboard.statistics import normal_interval
from prunebench.leaderboard.tables import Cell, Column, Table, half_width, number_cell

SPARSITY_TOLERANCE = 0.005


@dataclass(frozen=True)
class Published:
    """One number of one paper."""

    paper: str
    table: str
    table_id: str
    source: str
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


@dataclass(frozen=True)
class Line:
    """One published number with what we measured, if anything."""

    published: Published
    measured: Score | None
    verdict: str
    why: str


def load() -> tuple[list[Published], dict[str, Any]]:
    """Every published number, and the table of names that match."""
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
    def not_run(why: str) -> Line:
        return Line(number, None, "not run", why)

    if not number.comparable:
        return Line(number, None, "not comparable", number.note)
    models = [m.lower() for m in matching["models"].get(number.model, [])]
    if not models:
        return not_run(f"the paper's model ({number.model}) matches no single checkpoint")
    real = [e for e in entries if not e.synthetic and _model_matches(e.model, models)]
    if not real:
        return not_run(f"no record of {number.model}")
    method = matching["methods"].get(number.method)
    if method is None:
        return not_run(f"{number.method} is not among the methods here, or names another variant")
    if number.protocol is None:
        return not_run("no protocol here measures this in the paper's way")
    mine = [e for e in real if e.method == method and e.done]
    if not mine:
        return not_run(f"no finished record of {method} on {number.model}")
    if method != "dense":
        mine = [e for e in mine if (e.recovery != "none") == bool(number.finetuned)]
        if not mine:
            return not_run("not run with" + ("" if number.finetuned else "out") + " fine-tuning")
        mine = [e for e in mine if _sparsity_matches(e, number)]
        if not mine:
            return not_run("not run at this sparsity by this counting rule")
    for entry in mine:
        measured = _measured(entry, comparisons, number)
        if measured is not None:
            return _verdict(number, measured)
    return not_run(f"{number.protocol} was not evaluated")


def _model_matches(name: str, wanted: list[str]) -> bool:
    lowered = name.lower().rstrip("/")
    return lowered in wanted or lowered.rsplit("/", 1)[-1] in {w.rsplit("/", 1)[-1] for w in wanted}


def _sparsity_matches(entry: Entry, number: Published) -> bool:
    if number.sparsity is None or entry.sparsity is None:
        return False
    if number.counting in ("total", "blocks") and entry.basis != number.counting:
        return False
    return abs(entry.sparsity - number.sparsity) <= SPARSITY_TOLERANCE


def _measured(entry: Entry, comparisons: Comparisons, number: Published) -> Score | None:
    for suite in entry.suites.values():
        if suite.protocol != number.protocol or _is_limited(entry.done[0], suite.protocol):
            continue
        if number.quantity == "mean":
            return suite.mean
        if number.quantity == "retention":
            kept = comparisons.retention.get((entry.id, suite.id))
            if kept is None or kept[1] is None:
                return None
            interval = normal_interval(kept[0], kept[1])
            return Score("share of dense", "percent", kept[0], kept[1], interval, suite.mean.n if suite.mean else 0, True, None, "")
        score = suite.tasks.get(number.quantity)
        if score is None:
            continue
        return score if score.metric == number.metric else _other_metric(entry.done[0], number, score)
    return None


def _is_limited(record: Record, protocol: str) -> bool:
    return any(s.protocol == protocol and s.extra.get("limit") is not None for s in record.metrics.scores)


def _other_metric(record: Record, number: Published, like: Score) -> Score | None:
    for protocol in record.metrics.scores:
        for task in protocol.tasks:
            found = task.all_metrics.get(number.metric)
            if protocol.protocol == number.protocol and task.task == number.quantity and found is not None:
                interval = None if found.stderr is None else normal_interval(found.value, found.stderr)
                return Score(number.metric, like.kind, found.value, found.stderr, interval, like.n, like.higher_is_better, like.chance, "")
    return None


def _verdict(number: Published, measured: Score) -> Line:
    scale = 100.0 if number.unit == "%" else 1.0
    if measured.interval is None:
        return Line(number, measured, "no interval", "our score has no standard error")
    low, high = scale * measured.interval.low, scale * measured.interval.high
    if low <= number.value <= high:
        return Line(number, measured, "reproduced", f"published value lies in our 95 % interval, {low:.2f} to {high:.2f}")
    return Line(
        number, measured, "differs", f"by {scale * measured.value - number.value:+.2f}; our 95 % interval is {low:.2f} to {high:.2f}"
    )


def table(lines: list[Line]) -> Table:
    """The ledger as a table of the page."""
    columns = [
        Column("quantity", "Number", "always", "what the number is", False),
        Column("model", "Model", "always", "as the paper names it", False),
        Column("method", "Method", "always", "as the paper names it", False),
        Column("sparsity", "Sparsity", "always", "as the paper states it, and what it counts"),
        Column("tuned", "Tuned", "always", "fine-tuned after pruning", False),
        Column("published", "Published", "always", "number printed in the paper"),
        Column("measured", "Measured here", "always", "our record, 95 % interval"),
        Column("verdict", "Verdict", "always", "reproduced: the published value lies in our interval", False),
        Column("why", "Why", "wrap", "reason of the verdict", False),
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
        sub = "±" + half_width(line.measured) if line.measured.interval else ""
        measured = Cell(line.measured.value, fmt.score(line.measured.value, line.measured.kind), sub)
    sparsity = fmt.percent(p.sparsity, 1).replace(".0 %", " %") if p.sparsity is not None else (p.params_kept or fmt.MISSING)
    tuned = "yes" if p.finetuned else "no" if p.finetuned is not None else fmt.MISSING
    return {
        "quantity": Cell(quantity, quantity, p.metric if p.metric != "mean of tasks" else ""),
        "paper": Cell(p.paper, p.paper),
        "model": Cell(p.model, p.model),
        "method": Cell(p.method, p.method),
        "sparsity": Cell(p.sparsity, "dense" if p.method == "dense" else sparsity, "" if p.method == "dense" else p.counting),
        "tuned": Cell(tuned, tuned),
        "published": number_cell(p.value, lambda v: f"{v:g}"),
        "measured": measured,
        "verdict": Cell(line.verdict, line.verdict),
        "why": Cell(line.why, line.why),
        "table": Cell(p.table, p.table_id, "", f"{p.table}; {p.source}" + (f"; {p.note}" if p.note else "")),
    }


def note(lines: list[Line], left_out: int) -> str:
    """One sentence over the ledger."""
    counts = {v: sum(line.verdict == v for line in lines) for v in ("reproduced", "differs")}
    matched = sum(line.measured is not None for line in lines)
    text = f"{len(lines)} numbers, each seen in an opened source. "
    if matched:
        text += (
            f"{matched} have a matching record here: {counts['reproduced']} reproduced within our interval, {counts['differs']} differ. "
        )
    else:
        text += "None has a matching record here yet: model, method, protocol and counting rule must be the same. "
    return text + f"{left_out} numbers that could only be recalled, not seen, are left out. Published and measured never share a column."
