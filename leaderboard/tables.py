"""The table model: rows and columns with both the number to sort by and the text to show. Page and exports share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Score
from prunebench.leaderboard.compare import Comparisons
from prunebench.leaderboard.record import Record

STATUS_WORDS = {
    "done": "done",
    "skipped": "skipped",
    "failed": "failed",
    "interrupted": "interrupted",
    "out_of_memory": "out of memory",
}
PRUNE_STAGES = ("prune",)
RECOVER_STAGES = ("recover",)


@dataclass(frozen=True)
class Column:
    """One column; `group` says in which view it is shown."""

    key: str
    label: str
    group: str
    title: str = ""
    is_number: bool = True
    suite: str = ""
    is_lower_better: bool = False


@dataclass(frozen=True)
class Cell:
    """What sorts, what is shown, and a smaller second part (an interval, a rank, a reason)."""

    sort: float | str | None
    text: str
    sub: str = ""
    tip: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def full(self) -> str:
        return f"{self.text} {self.sub}".strip()


@dataclass
class Table:
    """Rows of cells by column key."""

    columns: list[Column]
    rows: list[dict[str, Cell]]
    ids: list[int]


EMPTY = Cell(None, fmt.MISSING)


def score_cell(score: Score | None, rank: int | None = None, is_shared: bool = False) -> Cell:
    """`63.6` with `±3.3` beside it; the exact interval in the tip."""
    if score is None:
        return EMPTY
    text = fmt.score(score.value, score.kind)
    if score.interval is None:
        return Cell(score.value, text, "", f"{score.metric}, n = {score.n}, no standard error recorded")
    sub = "±" + half_width(score)
    low, high = fmt.score(score.interval.low, score.kind), fmt.score(score.interval.high, score.kind)
    tip = f"{score.metric}, n = {score.n}, 95 % interval {low} to {high} ({score.interval.method})"
    if score.chance is not None:
        tip += f"; chance {fmt.score(score.chance, score.kind)}"
    if score.seeds > 1:
        tip += f"; mean of {score.seeds} seeds"
    if rank is not None:
        tip += f"; rank {rank}" + (", shared" if is_shared else "")
    return Cell(score.value, text, sub, tip, score.interval.low, score.interval.high)


def half_width(score: Score) -> str:
    assert score.interval is not None
    half = score.interval.half_width
    if score.kind == "percent":
        return fmt.fixed(100 * half, 1)
    return fmt.significant(half, 2)


def rank_text(rank: int | None, is_shared: bool) -> str:
    return fmt.MISSING if rank is None else f"{rank}{'=' if is_shared else ''}"


def number_cell(value: float | None, show: Callable[[float | None], str], tip: str = "") -> Cell:
    return Cell(None if value is None or math.isnan(value) else value, show(value), "", tip)


def suite_ids(entries: Iterable[Entry]) -> list[str]:
    """Every suite, those with most tasks first, perplexities last."""
    seen: dict[str, tuple[bool, int, str]] = {}
    for entry in entries:
        for suite in entry.suites.values():
            mean = suite.mean
            key = (mean is not None and not mean.higher_is_better, -len(suite.tasks), suite.id)
            seen[suite.id] = min(seen.get(suite.id, key), key)
    return sorted(seen, key=lambda s: seen[s])


def _suite_columns(entries: list[Entry]) -> list[Column]:
    columns = []
    for suite_id in suite_ids(entries):
        examples = [e.suites[suite_id] for e in entries if suite_id in e.suites]
        with_mean = next((s for s in examples if s.mean is not None), examples[0])
        mean = with_mean.mean
        lower = mean is not None and not mean.higher_is_better
        unit = fmt.score_unit(mean.kind) if mean else ""
        arrow = "↓" if lower else "↑"
        label = f"{suite_id.removesuffix(' (synthetic)')} {unit} {arrow}".replace("  ", " ")
        if suite_id.endswith(" (synthetic)"):
            label = f"synthetic: {label}"
        definition = with_mean.definition or (mean.definition if mean else "")
        columns.append(Column(f"{suite_id}|rank", "rank", suite_id, "1 + number of methods that are significantly better", suite=suite_id))
        columns.append(Column(f"{suite_id}|mean", label, "suite", fmt.clean(definition), suite=suite_id, is_lower_better=lower))
        columns.append(Column(f"{suite_id}|retention", "of dense", suite_id, "score divided by the dense model's, with its 95 % interval"))
        columns.append(Column(f"{suite_id}|margin", "over chance", suite_id, "score minus what guessing gives"))
        tasks: dict[str, Score] = {}
        for suite in examples:
            for name in suite.task_order:
                if name in suite.tasks:
                    tasks.setdefault(name, suite.tasks[name])
        if any(len(suite.task_order) > 1 for suite in examples):
            for name, score in tasks.items():
                title = fmt.clean(score.definition) or f"{score.metric}, n = {score.n}"
                columns.append(
                    Column(f"{suite_id}|task|{name}", name, suite_id, title, suite=suite_id, is_lower_better=not score.higher_is_better)
                )
    return columns


_FIRST = [
    Column("method", "Method", "always", "pruning method; settings where they differ", False),
    Column("model", "Model", "always", "model that was pruned", False),
    Column("sparsity", "Sparsity", "always", "target: share of parameters removed (of all, or of the decoder blocks)"),
    Column("recovery", "Recovery", "always", "fine-tuning after pruning, equal for all methods", False),
]
_STATUS = Column("status", "Status", "always", "done, or why not", False)
_REST = [
    Column("params_total", "Params", "always", "all distinct parameters that remain", is_lower_better=True),
    Column("params_blocks", "Block params", "size", "projection weights in the decoder blocks that remain", is_lower_better=True),
    Column("removed_total", "Removed", "size", "measured: parameters removed / dense, all parameters"),
    Column("removed_blocks", "Removed (blocks)", "size", "measured: parameters removed / dense, decoder blocks"),
    Column("disk_bytes", "On disk", "size", "size of the saved checkpoint", is_lower_better=True),
    Column("macs", "MACs/token", "size", "multiply-accumulates per token", is_lower_better=True),
    Column("latency", "Latency ms", "speed", "latency measured on the run's machine", is_lower_better=True),
    Column("decode", "Decode tok/s", "speed", "tokens per second, one at a time"),
    Column("prefill", "Prefill tok/s", "speed", "tokens per second reading a prompt"),
    Column("memory", "Peak memory", "speed", "peak memory while measuring speed", is_lower_better=True),
    Column("prune_seconds", "Prune time", "cost", "wall time of the prune stage, mean over seeds", is_lower_better=True),
    Column("prune_tokens", "Prune tokens", "cost", "tokens that pruning pushed through the model", is_lower_better=True),
    Column("prune_peak", "Prune memory", "cost", "peak memory of the prune stage", is_lower_better=True),
    Column("recover_tokens", "Recovery tokens", "cost", "tokens that recovery trained on", is_lower_better=True),
    Column("recover_seconds", "Recovery time", "cost", "wall time of the recovery stage", is_lower_better=True),
    Column("total_seconds", "Cell time", "cost", "wall time of all stages, mean over seeds", is_lower_better=True),
]


def leaderboard(entries: list[Entry], found: Comparisons) -> Table:
    """One row an entry: every column of the page."""
    columns = [*_FIRST, *_suite_columns(entries), *_REST, _STATUS]
    rows = []
    for entry in entries:
        row = _base_row(entry)
        for suite in entry.suites.values():
            row.update(_suite_cells(entry, suite.id, found))
        rows.append({c.key: row.get(c.key, EMPTY) for c in columns})
    used = {c.key for c in columns if c.group == "always" or any(r[c.key] is not EMPTY and r[c.key].text != fmt.MISSING for r in rows)}
    return Table([c for c in columns if c.key in used], rows, [e.id for e in entries])


def _base_row(entry: Entry) -> dict[str, Cell]:
    reasons = [fmt.short(r.run.reason, 300) for r in entry.records if r.run.status != "done"]
    counts = [r.run.status for r in entry.records]
    status = STATUS_WORDS[entry.status]
    sub = ""
    if len(counts) > 1:
        sub = f"{counts.count('done')}/{len(counts)} seeds"
    total = [sum(s.seconds for s in r.run.stages) for r in entry.done if r.run.stages]
    return {
        "method": Cell(entry.label, entry.label, "synthetic" if entry.synthetic else ""),
        "model": Cell(fmt.model_label(entry.model), fmt.model_label(entry.model), "", fmt.short(entry.model, 200)),
        "sparsity": Cell(entry.sparsity or 0.0, fmt.sparsity(entry.sparsity), "" if entry.is_dense else f"of {entry.basis}"),
        "recovery": Cell(entry.recovery, fmt.short(entry.recovery, 24)),
        "status": Cell(status, status, sub, "; ".join(dict.fromkeys(reasons))),
        "params_total": number_cell(entry.mean_of("params_total"), fmt.count, _exact(entry.mean_of("params_total"))),
        "params_blocks": number_cell(entry.mean_of("params_blocks"), fmt.count, _exact(entry.mean_of("params_blocks"))),
        "removed_total": number_cell(entry.mean_of("achieved_sparsity_total"), lambda v: fmt.percent(v, 1)),
        "removed_blocks": number_cell(entry.mean_of("achieved_sparsity_blocks"), lambda v: fmt.percent(v, 1)),
        "disk_bytes": number_cell(entry.mean_of("disk_bytes"), fmt.bytes_),
        "macs": number_cell(entry.efficiency("macs_per_token"), fmt.count),
        "latency": number_cell(entry.efficiency("latency_ms"), lambda v: fmt.significant(v, 3)),
        "decode": number_cell(entry.efficiency("decode_tokens_per_second"), lambda v: fmt.significant(v, 3)),
        "prefill": number_cell(entry.efficiency("prefill_tokens_per_second"), lambda v: fmt.significant(v, 3)),
        "memory": number_cell(entry.efficiency("peak_memory_bytes"), fmt.bytes_),
        "prune_seconds": number_cell(entry.stage_seconds("prune"), fmt.seconds),
        "prune_tokens": number_cell(entry.stage_tokens("prune"), fmt.count),
        "prune_peak": number_cell(entry.stage_peak("prune"), fmt.bytes_),
        "recover_tokens": number_cell(entry.stage_tokens("recover") or None, fmt.count),
        "recover_seconds": number_cell(entry.stage_seconds("recover"), fmt.seconds),
        "total_seconds": number_cell(sum(total) / len(total) if total else None, fmt.seconds),
    }


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} parameters"


def _suite_cells(entry: Entry, suite_id: str, found: Comparisons) -> dict[str, Cell]:
    suite = entry.suites[suite_id]
    rank = found.ranks.get((entry.id, suite_id))
    is_shared = (entry.id, suite_id) in found.shared
    cells = {f"{suite_id}|mean": score_cell(suite.mean, rank, is_shared)}
    cells[f"{suite_id}|rank"] = Cell(rank, rank_text(rank, is_shared))
    if suite.mean is not None and suite.mean.margin is not None:
        margin = suite.mean.margin
        sub = "at chance" if suite.mean.is_at_chance else ""
        cells[f"{suite_id}|margin"] = Cell(margin, fmt.signed(100 * margin, 1), sub)
    kept = found.retention.get((entry.id, suite_id))
    if kept is not None and suite.mean is not None and suite.mean.kind != "number":
        share, error = kept
        if suite.mean.kind == "perplexity":
            cells[f"{suite_id}|retention"] = Cell(share, f"×{fmt.significant(share, 3)}")
        else:
            sub = "" if error is None else f"±{fmt.fixed(196 * error, 0)}"
            cells[f"{suite_id}|retention"] = Cell(share, fmt.percent(share, 0), sub)
    for name, score in suite.tasks.items():
        cells[f"{suite_id}|task|{name}"] = score_cell(score)
    return cells


def cells_table(entries: list[Entry]) -> tuple[Table, list[Record]]:
    """One row a record (`cells` view), with the recorded values; also the records in row order."""
    suites = suite_ids(entries)
    columns = [
        Column("cell", "Cell", "always", "hash of the cell's config; its folder's name", False),
        *_FIRST,
        Column("seed", "Seed", "always", "seed of the cell"),
        *[c for c in _suite_columns(entries) if c.key.endswith("|mean")],
        *[c for c in _REST if c.key in ("params_total", "prune_seconds", "total_seconds")],
        _STATUS,
    ]
    rows: list[dict[str, Cell]] = []
    ids: list[int] = []
    records: list[Record] = []
    for entry in entries:
        for record in entry.records:
            run = record.run
            seconds = [s.seconds for s in run.stages if s.name == "prune"]
            row = {
                "cell": Cell(run.cell_id, fmt.short(run.cell_id, 20)),
                "method": Cell(entry.label, entry.label, "synthetic" if run.synthetic else ""),
                "model": Cell(fmt.model_label(entry.model), fmt.model_label(entry.model)),
                "sparsity": Cell(entry.sparsity or 0.0, fmt.sparsity(entry.sparsity)),
                "recovery": Cell(entry.recovery, fmt.short(entry.recovery, 24)),
                "seed": Cell(run.seed, str(run.seed)),
                "status": Cell(STATUS_WORDS[run.status], STATUS_WORDS[run.status], "", fmt.short(run.reason, 200)),
                "params_total": number_cell(_or_none(record.metrics.params_total), fmt.count),
                "prune_seconds": number_cell(sum(seconds) if seconds else None, fmt.seconds),
                "total_seconds": number_cell(sum(s.seconds for s in run.stages) if run.stages else None, fmt.seconds),
            }
            if run.status == "done":
                for suite_id in suites:
                    row[f"{suite_id}|mean"] = _recorded_mean(entry, suite_id, record)
            rows.append({c.key: row.get(c.key, EMPTY) for c in columns})
            ids.append(len(ids))
            records.append(record)
    return Table(columns, rows, ids), records


def _or_none(value: int | None) -> float | None:
    return None if value is None else float(value)


def _recorded_mean(entry: Entry, suite_id: str, record: Record) -> Cell:
    suite = entry.suites.get(suite_id)
    if suite is None or suite.mean is None:
        return EMPTY
    kind = suite.mean.kind
    for score in record.metrics.scores:
        if score.protocol == suite.protocol and score.version == suite.version:
            if score.mean is not None:
                return number_cell(score.mean.value, lambda v: fmt.score(v, kind))
            for task in score.tasks:
                if fmt.short(task.task, 60) == suite.task_order[0]:
                    return number_cell(task.value, lambda v: fmt.score(v, kind))
    return EMPTY
