"""What is equal over the rows of a race and what is not, read from their records: never promised, always computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.compare import Block
from prunebench.leaderboard.record import Record

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Fact:
    """One thing that a fair race has equal: its value, or who has which.

    Attributes:
        groups: values in the order of their first row, each with the labels of the rows that have it.
    """

    what: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def is_equal(self) -> bool:
        return len(self.groups) == 1 and self.groups[0][0] != NOT_RECORDED

    @property
    def words(self) -> str:
        if len(self.groups) == 1:
            return f"{self.what} ({self.groups[0][0]})"
        return f"{self.what}: " + "; ".join(f"{value} ({', '.join(rows)})" for value, rows in self.groups)


@dataclass(frozen=True)
class Fairness:
    """The facts of one race, and the rows that are not in it because of their training tokens."""

    rows: int
    facts: tuple[Fact, ...]
    elsewhere: tuple[tuple[str, str], ...]

    @property
    def equal(self) -> list[Fact]:
        return [fact for fact in self.facts if fact.is_equal]

    @property
    def different(self) -> list[Fact]:
        return [fact for fact in self.facts if not fact.is_equal]

    @property
    def sentence(self) -> str:
        """One sentence on what is equal, one on each thing that is not."""
        said = []
        if self.rows > 1 and self.equal:
            said.append(f"Equal for all {self.rows} rows: {', '.join(fact.words for fact in self.equal)}.")
        if self.rows > 1:
            said += [f"Different {fact.words}." if len(fact.groups) > 1 else f"Not recorded: {fact.what}." for fact in self.different]
        if self.elsewhere:
            said.append("Not in this race: " + "; ".join(f"{label} ({track})" for label, track in self.elsewhere) + ".")
        return " ".join(said)


def fairness(block: Block, entries: list[Entry]) -> Fairness:
    """What the methods of a race have in common; `entries` are all rows of the page."""
    asked: list[tuple[str, Callable[[Entry], str]]] = [
        ("model", _model),
        ("training text", training_text),
        ("training tokens", lambda e: _tokens(e.training_tokens)),
        ("calibration samples", _calibration),
        ("recovery", _recovery),
        ("evaluation items", lambda e: _items(e, block.suite)),
        ("seeds", lambda e: ", ".join(str(s) for s in sorted({r.run.seed for r, _ in e.suites[block.suite].scored}))),
    ]
    facts = []
    for what, value in asked:
        groups: dict[str, list[str]] = {}
        for entry in block.entries:
            groups.setdefault(value(entry), []).append(entry.full_label)
        facts.append(Fact(what, tuple((text, tuple(rows)) for text, rows in groups.items())))
    return Fairness(len(block.entries), tuple(facts), tuple(_elsewhere(block, entries)))


def _elsewhere(block: Block, entries: list[Entry]) -> Iterator[tuple[str, str]]:
    """Methods with the same model and sparsity that raced in another track."""
    here = {e.contender for e in block.entries}
    place = (block.model, block.synthetic, block.sparsity, block.basis)
    told: set[tuple[Any, ...]] = set()
    for entry in entries:
        key = (entry.contender, entry.track)
        if entry.race is None or block.suite not in entry.suites or entry.contender in here or key in told:
            continue
        if (entry.model, entry.synthetic, entry.sparsity, entry.basis) == place and entry.track != block.track:
            told.add(key)
            recovery = f" + {fmt.short(entry.recovery, 24)}" if entry.recovery != "none" else ""
            yield fmt.short(entry.method) + recovery, entry.track


def _over_seeds(entry: Entry, value: Callable[[Record], str]) -> str:
    return " and ".join(dict.fromkeys(value(record) for record in entry.done)) or NOT_RECORDED


def _model(entry: Entry) -> str:
    def one(record: Record) -> str:
        sha = str(record.provenance.model.get("sha256") or "")
        config = record.run.config.get("model")
        dtype = config.get("dtype") if isinstance(config, Mapping) else None
        name = fmt.model_label(record.run.model) + (f", {dtype}" if dtype else "")
        return name + (f", weights {sha[:8]}" if sha else "")

    return _over_seeds(entry, one)


def training_text(entry: Entry) -> str:
    """The text that a row trained on: by its provenance, else by its settings; 'none' where there was no training."""
    if entry.training_tokens == 0:
        return "none"

    def one(record: Record) -> str:
        used = [part for part in record.provenance.data if part.get("purpose") not in ("calibration", "evaluation")]
        names = [str(part.get("source", "")).partition(" (")[0] for part in used]
        names += list(_text_sources(record.run.config.get("method_config")))
        if record.run.recovery != "none" and not used:
            names += list(_text_sources(record.run.config.get("recovery_config")))
        return " then ".join(dict.fromkeys(fmt.short(name, 40) for name in names if name)) or NOT_RECORDED

    return _over_seeds(entry, one)


def _text_sources(settings: Any) -> Iterator[str]:
    """The sources of the texts in a method's or a recovery's settings: {text: {source: alpaca}}."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if str(key).endswith("text") and isinstance(value, Mapping) and value.get("source"):
                yield str(value["source"])


def _calibration(entry: Entry) -> str:
    def one(record: Record) -> str:
        used = [part for part in record.provenance.data if part.get("purpose") == "calibration"]
        settings = record.run.config.get("calibration")
        if used:
            return fmt.short(str(used[0].get("source", "")), 80)
        if not isinstance(settings, Mapping):
            return NOT_RECORDED
        return "none"

    return _over_seeds(entry, one)


def _recovery(entry: Entry) -> str:
    return fmt.short(entry.recovery, 24)


def _items(entry: Entry, suite_id: str) -> str:
    suite = entry.suites[suite_id]
    count = sum(part[2] for part in suite.signature)
    return f"the same {count}" if suite.signature else NOT_RECORDED


def _tokens(count: float | None) -> str:
    return NOT_RECORDED if count is None else f"{count:,.0f}"
