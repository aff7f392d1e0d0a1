"""Records to entries: one entry is one row, the cells of one setting that differ in nothing but the seed and in what was scored."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.record import ProtocolScore, Record, RunBlock
from prunebench.leaderboard.scores import Score, Suite, SuiteName, build_suite, signature_of
from prunebench.leaderboard.tracks import NOT_RECORDED, calibration_tokens, depends_on_seed, label_tokens, tracks, training_tokens
from prunebench.leaderboard.variants import set_apart, short_words

__all__ = ["Entry", "Note", "Score", "Suite", "collect", "mean_known"]

MOST_TOLD = 3
"""Rows of several tracks are told apart by their settings where each needs at most so many words for it; else by the track."""
NO_SETTINGS = ("seed", "protocols", "efficiency", "sparsity")
"""Keys of a cell's config that make no other setting: which seed, what was scored, and what `run` says anyway."""
_STATUS_ORDER = ("done", "interrupted", "skipped", "out_of_memory", "failed")


@dataclass(frozen=True)
class Note:
    """Something that a reader of the page must know about the data."""

    kind: str
    text: str


@dataclass
class Entry:
    """One row: same model, method, settings, sparsity, basis and recovery; one or more seeds."""

    id: int
    model: str
    method: str
    sparsity: float | None
    basis: str
    recovery: str
    synthetic: bool
    records: list[Record] = field(repr=False)
    settings: str = field(default="", repr=False)
    track: str = NOT_RECORDED
    tokens_of_track: float = math.inf
    """Fewest training tokens of any row of its track."""
    variant: str = ""
    tells_track: bool = False
    """The same words stand for rows of several tracks of this model."""
    problem: str = ""
    """Why the row can't be compared with any other (its sparsity is missing, say)."""
    suites: dict[str, Suite] = field(default_factory=dict, repr=False)

    @cached_property
    def done(self) -> list[Record]:
        return [r for r in self.records if r.run.status == "done"]

    @property
    def is_dense(self) -> bool:
        return self.method == "dense"

    @property
    def status(self) -> str:
        """Of the entry as a whole: done only when every seed is."""
        return max((r.run.status for r in self.records), key=_STATUS_ORDER.index)

    @property
    def label(self) -> str:
        """Method and, where one method appears with several settings, what sets it apart."""
        name = fmt.short(self.method)
        return f"{name} · {self.variant}" if self.variant else name

    @property
    def full_label(self) -> str:
        return self.label + (f" + {fmt.short(self.recovery, 24)}" if self.recovery != "none" else "")

    @property
    def line(self) -> str:
        """Name of its line in a picture that shows every track."""
        return f"{self.full_label}, {self.track}" if self.tells_track else self.full_label

    @property
    def title(self) -> str:
        parts = [fmt.model_label(self.model), self.full_label]
        if not self.is_dense:
            parts.append(fmt.sparsity(self.sparsity))
        return " ".join(parts) + (f", {self.track}" if self.tells_track else "")

    @property
    def contender(self) -> tuple[str, str]:
        """Whose row it is: several settings of one contender are ablations of it, not further contenders."""
        return (self.method, self.recovery)

    @property
    def race(self) -> tuple[Any, ...] | None:
        """Entries of one race compete with each other; None for those that compete with nobody."""
        if self.is_dense or self.problem:
            return None
        return (self.model, self.sparsity, self.basis, self.track, self.synthetic)

    @cached_property
    def training_tokens(self) -> float | None:
        """Mean over the finished seeds; None where one of them does not tell."""
        counts = [training_tokens(record) for record in self.done]
        return mean_known(counts) if counts and all(count is not None for count in counts) else None

    @cached_property
    def label_tokens(self) -> float | None:
        return mean_known(label_tokens(record) for record in self.done)

    @cached_property
    def calibration_tokens(self) -> float | None:
        return mean_known(calibration_tokens(record) for record in self.done)

    @cached_property
    def depends_on_seed(self) -> bool:
        return any(depends_on_seed(record) for record in self.done)

    @property
    def is_tuned(self) -> bool | None:
        """Trained, in a recovery or while it was pruned; None where that is not known."""
        if self.recovery != "none":
            return True
        return None if self.training_tokens is None else self.training_tokens > 0

    def mean_of(self, name: str) -> float | None:
        """Mean over the finished cells of a field of `metrics`."""
        return mean_known(getattr(r.metrics, name) for r in self.done)

    def efficiency(self, name: str) -> float | None:
        return mean_known(getattr(r.metrics.efficiency, name) for r in self.done if r.metrics.efficiency)

    def stage_seconds(self, name: str) -> float | None:
        return mean_known(sum(s.seconds for s in r.run.stages if s.name == name) for r in self.done if _has(r, name))

    def stage_peak(self, name: str) -> float | None:
        return mean_known(s.peak_memory_bytes for r in self.done for s in r.run.stages if s.name == name)


def _has(record: Record, stage: str) -> bool:
    return any(s.name == stage for s in record.run.stages)


def mean_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None when none is."""
    known = [float(v) for v in values if v is not None and not math.isnan(v)]
    return sum(known) / len(known) if known else None


def settings_of(run: RunBlock) -> dict[str, Any]:
    """The part of a cell's config by which one setting differs from another."""
    return {key: value for key, value in run.config.items() if key not in NO_SETTINGS}


def collect(records: list[Record]) -> tuple[list[Entry], list[Note]]:
    """Group records into entries, in a stable order: model, dense first, sparsity, track, recovery, method."""
    notes: list[Note] = []
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        run = record.run
        settings = json.dumps(settings_of(run), sort_keys=True, default=str)
        target = "none" if run.sparsity is None else repr(float(run.sparsity))  # NaN is not equal to itself
        groups[(run.synthetic, run.model, target, run.basis, run.recovery, run.method, settings)].append(record)
    for group in groups.values():
        group.sort(key=lambda r: (r.run.seed, r.run.cell_id))
    found = [
        Entry(
            0,
            model=model,
            method=method,
            sparsity=group[0].run.sparsity,
            basis=basis,
            recovery=recovery,
            synthetic=synthetic,
            records=group,
            settings=settings,
            problem=_sparsity_problem(group[0].run),
        )
        for (synthetic, model, _, basis, recovery, method, settings), group in groups.items()
    ]
    _name_tracks(found)
    entries = sorted(found, key=_order)
    for i, entry in enumerate(entries):
        entry.id = i
    _name_variants(entries)
    _name_lines(entries)
    ids = _suite_ids(key for record in records for key, _ in _pieces(record))
    for entry in entries:
        _score(entry, ids, notes)
    notes += _run_notes(entries)
    return entries, notes


def _order(entry: Entry) -> tuple[Any, ...]:
    sparsity = entry.sparsity if entry.sparsity is not None and math.isfinite(entry.sparsity) else 0.0
    place = (entry.synthetic, entry.model, not entry.is_dense, sparsity, entry.basis, entry.tokens_of_track)
    return (*place, entry.method, entry.recovery, entry.settings)


def _sparsity_problem(run: RunBlock) -> str:
    """What is wrong with the target sparsity of a record; empty when nothing is."""
    sparsity = run.sparsity
    if run.method == "dense":
        return "" if sparsity in (None, 0.0) else f"is called dense, but has sparsity {sparsity:g}"
    if sparsity is None:
        return "has no sparsity"
    return "" if 0 <= sparsity < 1 else f"has sparsity {sparsity:g}, which is no share of the parameters (0 to 1)"


def _run_notes(entries: list[Entry]) -> list[Note]:
    notes = []
    for entry in entries:
        if entry.problem:
            notes.append(Note("sparsity", f"{entry.title}: the record {entry.problem}; the row is compared with no other."))
        if entry.basis not in ("total", "blocks"):
            notes.append(Note("basis", f"{entry.title}: unknown sparsity basis {fmt.short(entry.basis, 24)!r}."))
        for record in entry.records:
            for said in _set_aside(record):
                notes.append(Note("set aside", f"{entry.title}, cell {fmt.short(record.run.cell_id, 20)}: {fmt.short(said, 300)}"))
    return notes


def _set_aside(record: Record) -> list[str]:
    """What the run put aside as damaged and did again."""
    said = record.provenance.extra.get("set_aside")
    return [str(one) for one in said] if isinstance(said, list) else [str(said)] if said else []


def _name_tracks(entries: list[Entry]) -> None:
    """The tracks of each model, the same at every sparsity."""
    models: dict[tuple[str, bool], list[Entry]] = defaultdict(list)
    for entry in entries:
        models[(entry.model, entry.synthetic)].append(entry)
    for group in models.values():
        for entry, track in zip(group, tracks([e.training_tokens for e in group], [e.contender for e in group]), strict=True):
            entry.track = track
        fewest: dict[str, float] = {}
        for entry in group:
            fewest[entry.track] = min(
                fewest.get(entry.track, math.inf), math.inf if entry.training_tokens is None else entry.training_tokens
            )
        for entry in group:
            entry.tokens_of_track = fewest[entry.track]


def _name_variants(entries: list[Entry]) -> None:
    """Where one contender appears with several settings at one sparsity, say what differs; in one race never the same words twice."""
    same: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        place = (entry.model, entry.synthetic, entry.problem, repr(entry.sparsity), entry.basis)
        same[(*place, *entry.contender)].append(entry)
    for group in same.values():
        told = _told(group)
        if max(map(len, told)) <= MOST_TOLD:
            _name(group, told)
            continue
        tracks_of: dict[str, list[Entry]] = defaultdict(list)
        for entry in group:
            tracks_of[entry.track].append(entry)
        for part in tracks_of.values():
            _name(part, _told(part))


def _told(group: list[Entry]) -> list[dict[str, Any]]:
    """What sets the settings of several entries apart: those of the method and its recovery, others only where these don't."""
    settings = [settings_of(entry.records[0].run) for entry in group]
    own: list[dict[str, Any]] = [{key: one[key] for key in ("method_config", "recovery_config") if key in one} for one in settings]
    told = set_apart(own)
    return told if len({json.dumps(one, default=str) for one in told}) == len(told) else set_apart(settings)


def _name(group: list[Entry], told: list[dict[str, Any]]) -> None:
    if len(group) == 1:
        return
    words = [short_words(one) for one in told]
    counts, seen = Counter(words), Counter[str]()
    for entry, said in zip(group, words, strict=True):
        seen[said] += 1
        entry.variant = said if counts[said] == 1 else f"{said} #{seen[said]}".strip()


def _name_lines(entries: list[Entry]) -> None:
    """Where the same words name rows of several tracks of a model, pictures and titles tell the track too."""
    used: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for entry in entries:
        used[(entry.model, entry.synthetic, entry.full_label)].add(entry.track)
    for entry in entries:
        entry.tells_track = len(used[(entry.model, entry.synthetic, entry.full_label)]) > 1


def _is_synthetic(record: Record, score: ProtocolScore) -> bool:
    return record.run.synthetic or any(t.source == "synthetic" for t in score.tasks)


SuiteKey = tuple[str, str, str, str, bool, tuple[Any, ...]]
"""Model, protocol, its task where each is shown alone, version, whether synthetic, and signature."""


def _pieces(record: Record) -> list[tuple[SuiteKey, ProtocolScore]]:
    """The scores of a record; those of a protocol without a mean task by task."""
    found = []
    for score in record.metrics.scores:
        alone = score.mean is None and len(score.tasks) > 1
        parts = [score.model_copy(update={"tasks": [task]}) for task in score.tasks] if alone else [score]
        for part in parts:
            task = part.tasks[0].task if alone else ""
            key = (record.run.model, score.protocol, task, score.version, _is_synthetic(record, part), signature_of(part))
            found.append((key, part))
    return found


def _suite_ids(pieces: Iterable[SuiteKey]) -> dict[SuiteKey, SuiteName]:
    """Names: the protocol (and task); its version where several are present; where a model was scored on several sets of items
    their number."""
    versions: dict[str, set[str]] = defaultdict(set)
    sets: dict[tuple[Any, ...], set[tuple[Any, ...]]] = defaultdict(set)
    for model, protocol, task, version, synthetic, signature in pieces:
        versions[protocol].add(version)
        sets[(model, protocol, task, version, synthetic)].add(signature)
    found: dict[SuiteKey, SuiteName] = {}
    for (model, protocol, task, version, synthetic), signatures in sets.items():
        sizes = Counter(sum(part[2] for part in signature) for signature in signatures)
        for number, signature in enumerate(sorted(signatures), start=1):
            name = fmt.short(protocol, 40)
            if len(versions[protocol]) > 1:
                name += f" v{fmt.short(version, 16) or '?'}"
            if task:
                name += f": {fmt.short(task, 40)}"
            if len(signatures) > 1:
                size = sum(part[2] for part in signature)
                name += f", {size} items" + (f", set {number}" if sizes[size] > 1 else "")
            found[(model, protocol, task, version, synthetic, signature)] = SuiteName(name, synthetic)
    return found


def _score(entry: Entry, ids: dict[SuiteKey, SuiteName], notes: list[Note]) -> None:
    by_suite: dict[SuiteName, list[tuple[Record, ProtocolScore]]] = defaultdict(list)
    for record in entry.done:
        for key, score in _pieces(record):
            by_suite[ids[key]].append((record, score))
    if entry.done and not by_suite:
        notes.append(Note("no scores", f"{entry.title}: finished without any score."))
    for named, every in by_suite.items():
        where = f"{entry.title}, {named.name}"
        found = _one_a_seed(where, every, notes)
        entry.suites[named.id] = build_suite(where, named, found, partial(_tell, notes))


def _tell(notes: list[Note], kind: str, text: str) -> None:
    notes.append(Note(kind, text))


def _one_a_seed(where: str, found: list[tuple[Record, ProtocolScore]], notes: list[Note]) -> list[tuple[Record, ProtocolScore]]:
    """Of several records of one seed the one that finished last: a seed that was scored again is no other seed."""
    kept: dict[int, tuple[Record, ProtocolScore]] = {}
    for record, score in sorted(found, key=lambda one: (_finished(one[0]), one[0].run.cell_id)):
        kept[record.run.seed] = (record, score)
    if len(kept) < len(found):
        text = f"{where}: scored in {len(found)} records of {len(kept)} seed{'s' if len(kept) > 1 else ''}; of each seed the one "
        notes.append(Note("duplicate", text + "that finished last is used."))
    return [kept[seed] for seed in sorted(kept)]


def _finished(record: Record) -> float:
    return record.run.finished_at.timestamp() if record.run.finished_at else -math.inf
