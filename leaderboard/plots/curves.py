"""Training curves: loss, expected against target sparsity, multipliers, teacher and student sparsity."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.plots.style import Looks, Plot, figure, save, slug

MOST_POINTS = 1000
MOST_PANELS = 6
FAMILIES = (("sparsity", "sparsity"), ("loss", "loss"), ("lambda", "multipliers"), ("multiplier", "multipliers"))
ORDER = ("loss", "sparsity", "multipliers")
STYLES: tuple[tuple[str, Any], ...] = (
    ("solid", "-"),
    ("dashed", "--"),
    ("dotted", ":"),
    ("dash-dot", "-."),
    ("long dashes", (0, (8, 3))),
)
PER_LAYER = re.compile(r"layer_\d+$")


def family(name: str) -> str:
    """Curves that belong in one panel: everything about sparsity, every loss, every multiplier."""
    for word, found in FAMILIES:
        if word in name.lower():
            return found
    return name


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
            panels[family(name)].append((entry, name, good))
            about = {"model": entry.model, "method": entry.line, "target_sparsity": entry.sparsity, "synthetic": entry.synthetic}
            rows += [{**about, "curve": name, "step": x, "value": y} for x, y in good]
    shown = sorted(panels, key=lambda p: (ORDER.index(p) if p in ORDER else len(ORDER), p))[:MOST_PANELS]
    return {name: panels[name] for name in shown}, rows


def training_curves(entries: list[Entry], looks: Looks, folder: Path) -> Plot | None:
    """One panel a family of curves; a line for every entry and curve of it, first finished seed."""
    shown, rows = panels_of(entries)
    if not shown:
        return None
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    with figure(7.6, 2.7 * lines + 0.5, lines, columns) as (fig, axes):
        handles: dict[str, Any] = {}
        for axis, (name, curves) in zip(axes, shown.items(), strict=False):
            kinds = list(dict.fromkeys(curve for _, curve, _ in curves))
            for entry, curve, points in curves:
                style = STYLES[kinds.index(curve) % len(STYLES)][1]
                (line,) = axis.plot(*zip(*points, strict=True), color=looks.of(entry.line)["color"], ls=style, lw=1.2, alpha=0.85)
                handles.setdefault(fmt.short(entry.line, 26), line)
            axis.set_title(fmt.short(name, 40))
            axis.set_xlabel("step")
            if len(kinds) > 1:
                words = [f"{word}: {fmt.short(kind, 26)}" for (word, _), kind in zip(STYLES, kinds, strict=False)]
                axis.text(0.99, 0.03, "\n".join(words), transform=axis.transAxes, ha="right", va="bottom", fontsize=7)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
        model = fmt.model_label(entries[0].model)
        plot = Plot(
            f"training_curves_{slug(model)}", f"Training curves, {model}", "First finished seed of every setting that trains.", "curves"
        )
        return save(fig, folder, plot, rows)


def thinned(points: list[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` of them and the last one, evenly spaced."""
    if len(points) <= most:
        return points
    step = -(-len(points) // most)
    return [*points[:-1:step], points[-1]]
