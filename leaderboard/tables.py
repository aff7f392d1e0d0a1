"""The table model: rows and columns with both the number to sort by and the text to show. Page and exports share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Score
from prunebench.leaderboard.compare import ONE_SEED, Comparisons
from prunebench.leaderboard.dense import Kept
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
EXPORT = "export"
"""Group of columns that the page does not show; the files have them."""


def score_cell(score: Score | None, note: str = "") -> Cell:
    """`63.6` with `±3.3` beside it; the exact interval in the tip."""
    if score is None:
        return EMPTY
    text = fmt.score(score.value, score.kind)
    seeds = f", {score.seeds} seeds" if score.seeds > 1 else ""
    if score.interval is None:
        return Cell(score.value, text, "", f"{score.metric}, n = {score.n}{seeds}, no standard error recorded{note}")
    sub = "±" + half_width(score)
    low, high = fmt.score(score.interval.low, score.kind), fmt.score(score.interval.high, score.kind)
    tip = f"{score.metric}, n = {score.n}{seeds}, 95 % interval {low} to {high} ({score.interval.method})"
    if score.chance is not None:
        tip += f"; chance {fmt.score(score.chance, score.kind)}"
    return Cell(score.value, text, sub, tip + note, score.interval.low, score.interval.high)


def half_width(score: Score) -> str:
    assert score.interval is not None
    half = score.interval.half_width
    if score.kind == "percent":
        return fmt.fixed(100 * half, 1)
    return fmt.significant(half, 2)


def rank_cell(where: tuple[int, str], found: Comparisons) -> Cell:
    """`1` or `1–3`; where there is no rank, why."""
    rank = found.ranks.get(where)
    if rank is not None:
        text = str(rank.low) if rank.low == rank.high else f"{rank.low}–{rank.high}"
        return Cell(rank.low + rank.high / 1000, text, "", "places that the corrected tests leave open")
    why = found.unranked.get(where, "")
    return Cell(None, "1 seed" if why == ONE_SEED else fmt.MISSING, "", why)


def kept_cell(kept: Kept | None, is_ratio: bool = False) -> Cell:
    """A share of the dense model's with its interval: `62 % [55, 70]`, of a perplexity `×3.1 [2.9, 3.3]`."""
    if kept is None or math.isnan(kept.value):
        return EMPTY
    show = (lambda v: fmt.significant(v, 3)) if is_ratio else (lambda v: fmt.fixed(100 * v, 0))
    text = f"×{show(kept.value)}" if is_ratio else f"{show(kept.value)} %"
    about = [f"mean of {', '.join(kept.tasks)}"] if kept.tasks else []
    if kept.interval is None:
        about.append("no interval: the dense model is too near to chance, or no standard error was recorded")
        return Cell(kept.value, text, "", "; ".join(about))
    low, high = kept.interval.low, kept.interval.high
    about.append(f"95 % interval ({kept.interval.method}{'' if kept.is_paired else ', not paired'})")
    return Cell(kept.value, text, f"[{show(low)}, {show(high)}]", "; ".join(about), low, high)


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
        label = f"{with_mean.name} {unit} {arrow}".replace("  ", " ")
        if with_mean.synthetic:
            label = f"synthetic: {label}"
        definition = with_mean.definition or (mean.definition if mean else "")
        columns.append(Column(f"{suite_id}|rank", "rank", suite_id, "places that the corrected tests leave open", suite=suite_id))
        columns.append(Column(f"{suite_id}|mean", label, "suite", fmt.clean(definition), suite=suite_id, is_lower_better=lower))
        if lower:
            title = "perplexity divided by the dense model's, with its 95 % interval"
            columns.append(Column(f"{suite_id}|retention", "of dense", suite_id, title, is_lower_better=True))
        else:
            title = "(score - chance) / (dense - chance) of the mean of the tasks on which the dense model is above chance; 95 % interval"
            columns.append(Column(f"{suite_id}|kept", "kept above chance", suite_id, title))
            title = "score divided by the dense model's, chance included; for comparison with papers"
            columns.append(Column(f"{suite_id}|retention", "of dense", EXPORT, title))
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
    Column("track", "Track", "always", "training tokens, over pruning and recovery together: methods of one track compete", False),
    Column("recovery", "Recovery", "always", "fine-tuning after pruning", False),
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
    Column("training_tokens", "Training tokens", "cost", "tokens trained on, over pruning and recovery together", is_lower_better=True),
    Column("label_tokens", "Label tokens", "cost", "training tokens that carried a loss", is_lower_better=True),
    Column("calibration_tokens", "Calibration tokens", "cost", "tokens of calibration text", is_lower_better=True),
    Column("prune_peak", "Prune memory", "cost", "peak memory of the prune stage", is_lower_better=True),
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
        "sparsity": sparsity_cell(entry, True),
        "track": Cell(entry.training_tokens, entry.track),
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
        "training_tokens": _tokens_cell(entry.training_tokens),
        "label_tokens": _tokens_cell(entry.label_tokens),
        "calibration_tokens": _tokens_cell(entry.calibration_tokens),
        "prune_peak": number_cell(entry.stage_peak("prune"), fmt.bytes_),
        "recover_seconds": number_cell(entry.stage_seconds("recover"), fmt.seconds),
        "total_seconds": number_cell(sum(total) / len(total) if total else None, fmt.seconds),
    }


def sparsity_cell(entry: Entry, with_basis: bool = False) -> Cell:
    """The target; that it is missing, or no share at all, is said and not sorted."""
    if entry.is_dense and not entry.problem:
        return Cell(0.0, "dense")
    known = entry.sparsity is not None and math.isfinite(entry.sparsity)
    return Cell(entry.sparsity if known else None, fmt.sparsity(entry.sparsity), f"of {entry.basis}" if with_basis else "", entry.problem)


def _tokens_cell(value: float | None) -> Cell:
    return number_cell(value, fmt.count, "" if value is None else f"{value:,.0f} tokens")


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} parameters"


def _suite_cells(entry: Entry, suite_id: str, found: Comparisons) -> dict[str, Cell]:
    suite, where = entry.suites[suite_id], (entry.id, suite_id)
    rank = rank_cell(where, found)
    why = found.unranked.get(where)
    collapsed = "; collapsed" if where in found.collapsed else ""
    cells = {f"{suite_id}|mean": score_cell(suite.mean, (f"; not ranked: {why}" if why else "") + collapsed), f"{suite_id}|rank": rank}
    if suite.mean is not None and suite.mean.margin is not None:
        margin = suite.mean.margin
        sub = "at chance" if suite.mean.is_at_chance else ""
        cells[f"{suite_id}|margin"] = Cell(margin, fmt.signed(100 * margin, 1), sub)
    is_ratio = suite.mean is not None and suite.mean.kind == "perplexity"
    cells[f"{suite_id}|retention"] = kept_cell(found.of_dense.get(where), is_ratio)
    cells[f"{suite_id}|kept"] = kept_cell(found.kept.get(where))
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
                "sparsity": sparsity_cell(entry),
                "track": Cell(entry.training_tokens, entry.track),
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
    for scored, score in suite.scored:
        if scored is record:
            value = score.mean.value if score.mean is not None else score.tasks[0].value if len(score.tasks) == 1 else None
            return number_cell(value, lambda v: fmt.score(v, kind))
    return EMPTY
