"""Training curves: loss, expected against target sparsity, multipliers, teacher and student sparsity."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.plots.style import MOST_LINES, PALETTE, Plot, figure, legend, save, slug, wrapped

MOST_POINTS = 1000
MOST_PANELS = 6
FAMILIES = (("lambda", "multipliers"), ("multiplier", "multipliers"))
SPARSITY = ("expected_sparsity", "target_sparsity")
"""Of the curves of sparsities these two are drawn, in one panel; the others are in the CSV."""
ORDER = ("validation_loss", "loss", "lm_loss", "sparsity", "multipliers")
STYLES: tuple[tuple[str, Any], ...] = (("solid", "-"), ("dotted", ":"), ("dashed", "--"), ("dash-dot", "-."))
PER_LAYER = re.compile(r"layer_\d+$")


def family(name: str) -> str | None:
    """The panel of a curve: expected against target sparsity, all multipliers, everything else by itself; None for those not drawn."""
    last = kind_of_curve(name)
    if "sparsity" in last:
        return "sparsity" if last in SPARSITY else None
    return next((found for word, found in FAMILIES if word in last.lower()), last)


Lines = list[tuple[Entry, str, list[tuple[float, float]]]]


def panels_of(entries: list[Entry]) -> tuple[dict[str, Lines], list[dict[str, Any]]]:
    """At most MOST_PANELS families, the most telling first, with their lines; and their curves as rows of the CSV.

    Curves of single layers are left to the records: there are too many of them to read.
    """
    panels: dict[str, Lines] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if not entry.done:
            continue
        for name, points in entry.done[0].metrics.curves.items():
            good = thinned([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
            if not good or PER_LAYER.search(name):
                continue
            panel = family(name)
            if panel is not None:
                panels[panel].append((entry, name, good))
            about = {"model": entry.model, "method": entry.line, "target_sparsity": entry.sparsity, "synthetic": entry.synthetic}
            rows += [{**about, "curve": name, "step": x, "value": y} for x, y in good]
    shown = sorted(panels, key=lambda p: (ORDER.index(p) if p in ORDER else len(ORDER), p))[:MOST_PANELS]
    chosen = _chosen(entry for name in shown for entry, _, _ in panels[name])
    return {name: _few(panels[name], chosen) for name in shown}, rows


def _chosen(entries: Iterable[Entry]) -> list[int]:
    """The ids of the entries that are drawn: of each method one, at its highest sparsity."""
    found: dict[str, Entry] = {}
    for entry in entries:
        other = found.get(entry.line)
        if other is None or (entry.sparsity or 0.0) > (other.sparsity or 0.0):
            found[entry.line] = entry
    return [entry.id for entry in found.values()][:MOST_LINES]


def kind_of_curve(name: str) -> str:
    """The name of a curve without its stage."""
    return name.rpartition(": ")[2]


def _few(lines: Lines, chosen: list[int]) -> Lines:
    """At most MOST_LINES of a panel: every kind of curve of as many of the chosen entries as that leaves room for."""
    lines = [line for line in lines if line[0].id in chosen]
    kinds = list(dict.fromkeys(kind_of_curve(curve) for _, curve, _ in lines))[: len(STYLES)]
    entries = list(dict.fromkeys(entry.id for entry, _, _ in lines))[: max(1, MOST_LINES // max(len(kinds), 1))]
    return [line for line in lines if line[0].id in entries and kind_of_curve(line[1]) in kinds]


def training_curves(entries: list[Entry], folder: Path) -> Plot | None:
    """One panel a family of curves; a line for every entry and curve of it, first finished seed."""
    shown, rows = panels_of(entries)
    if not shown:
        return None
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    with figure(8.6, 2.7 * lines + 0.6, lines, columns) as (fig, axes):
        handles: dict[str, Any] = {}
        drawn: dict[int, int] = {}
        for axis, (name, curves) in zip(axes, shown.items(), strict=False):
            kinds = sorted({kind_of_curve(curve) for _, curve, _ in curves})
            for entry, curve, points in curves:
                style = STYLES[kinds.index(kind_of_curve(curve)) % len(STYLES)][1]
                label = f"{entry.line}, {fmt.sparsity(entry.sparsity)}"
                colour = PALETTE[drawn.setdefault(entry.id, len(drawn)) % len(PALETTE)]
                (line,) = axis.plot(*zip(*points, strict=True), color=colour, ls=style, lw=1.2, alpha=0.85)
                if style == "-":
                    handles.setdefault(label, line)
            axis.set_title(wrapped(name, 44))
            words = [f"{word}: {kind}" for (word, _), kind in zip(STYLES, kinds, strict=False)]
            axis.set_xlabel("step" + (f" ({', '.join(words)})" if len(kinds) > 1 else ""))
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        legend(fig, handles)
        model = fmt.model_label(entries[0].model)
        caption = "First finished seed of the first methods that train; the CSV has them all."
        plot = Plot(f"training_curves_{slug(model)}", f"Training curves, {model}", caption, "curves")
        return save(fig, folder, plot, rows)


def thinned(points: list[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` of them and the last one, evenly spaced."""
    if len(points) <= most:
        return points
    step = -(-len(points) // most)
    return [*points[:-1:step], points[-1]]
