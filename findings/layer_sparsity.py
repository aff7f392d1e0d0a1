"""Where learnt masks cut: sparsity of every decoder layer, by setting, beside how far seeds of one setting differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.exports import as_markdown
from prunebench.leaderboard.plots.shape import layer_removed
from prunebench.leaderboard.plots.style import LINES, PALETTE, figure
from prunebench.leaderboard.record import Record
from prunebench.leaderboard.schema import LayerShape
from prunebench.leaderboard.tables import Cell, Column

KINDS = {"KV groups": ("kv_groups_kept", "kv_groups_total"), "channels": ("ffn_kept", "ffn_total")}


def removed(shapes: Sequence[LayerShape], kind: str) -> float:
    """Fraction of these layers' `KV groups` or `channels` that is gone."""
    kept, total = KINDS[kind]
    return 1 - sum(getattr(shape, kept) for shape in shapes) / sum(getattr(shape, total) for shape in shapes)


def by_layer(record: Record) -> list[float]:
    """Of each layer, the mean of the removed fractions of query heads and channels."""
    return [layer_removed(shape) for shape in record.metrics.shapes]


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Mean absolute difference over layers."""
    return fmean(abs(x - y) for x, y in zip(a, b, strict=True))


def seeds_differ(entry: Entry) -> float | None:
    """Mean distance of two runs of one setting, or None for a single run."""
    pairs = list(combinations([by_layer(record) for record in entry.done], 2))
    return fmean(distance(a, b) for a, b in pairs) if pairs else None


def settings_differ(a: Entry, b: Entry) -> float:
    """Mean distance of a run of one setting from one of the other, of the same seed where both have it, as noise is then shared."""
    runs = {record.run.seed: by_layer(record) for record in a.done}
    others = {record.run.seed: by_layer(record) for record in b.done}
    shared = sorted(runs.keys() & others.keys())
    pairs = [(runs[seed], others[seed]) for seed in shared] or [(x, y) for x in runs.values() for y in others.values()]
    return fmean(distance(x, y) for x, y in pairs)


def layer_table(entries: list[Entry], reference: str | None) -> str:
    """One row a setting: what went where, how far its seeds differ, and how far it differs from `reference` at its sparsity."""
    keys = ["setting", "sparsity", "KV groups", "channels", "first third", "middle third", "last third", "between seeds"]
    keys += ["from the reference"] if reference else []
    rows = []
    for entry in entries:
        shapes = [record.metrics.shapes for record in entry.done]
        depth = len(shapes[0])
        thirds = [slice(depth * i // 3, depth * (i + 1) // 3) for i in range(3)]
        words = [entry.full_label, f"{entry.sparsity:.0%}"]
        words += [f"{fmean(removed(one, kind) for one in shapes):.1%}" for kind in KINDS]
        words += [f"{fmean(fmean(by_layer(record)[third]) for record in entry.done):.1%}" for third in thirds]
        apart = seeds_differ(entry)
        words.append("" if apart is None else f"{apart:.3f}")
        if reference:
            other = next((e for e in entries if e.full_label == reference and e.sparsity == entry.sparsity), None)
            words.append("" if other is None or other is entry else f"{settings_differ(entry, other):.3f}")
        rows.append({key: Cell(None, word) for key, word in zip(keys, words, strict=True)})
    return as_markdown([Column(key, key, "always", "", False) for key in keys], rows)


def layer_figure(entries: list[Entry], path: Path) -> None:
    """A panel a sparsity: each setting's mean over seeds, with the range of its seeds, as a PNG."""
    sparsities = sorted({entry.sparsity or 0.0 for entry in entries})
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure(7.6, 2.9 * len(sparsities) + 0.4, len(sparsities), 1) as (fig, axes):
        for axis, sparsity in zip(axes, sparsities, strict=True):
            for i, entry in enumerate(one for one in entries if (one.sparsity or 0.0) == sparsity):
                layers = list(zip(*(by_layer(record) for record in entry.done), strict=True))
                colour, dash = PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE) % len(LINES)]
                axis.plot([100 * fmean(layer) for layer in layers], color=colour, ls=dash, label=fmt.short(entry.full_label, 40))
                low, high = ([100 * pick(layer) for layer in layers] for pick in (min, max))
                axis.fill_between(range(len(layers)), low, high, color=colour, alpha=0.15, lw=0)
            axis.set_title(f"target {sparsity:.0%}")
            axis.set_ylabel("units removed, %")
            axis.legend(loc="upper left")
        axes[-1].set_xlabel("layer")
        fig.savefig(path, dpi=110, metadata={"Software": "prunebench"})
