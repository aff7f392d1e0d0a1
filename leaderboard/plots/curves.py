"""Training curves: loss, expected against target sparsity, multipliers, teacher and student sparsity."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from leaderboard import formatting as fmt
from leaderboard.collect import Entry
from leaderboard.plots.style import Looks, Plot, figure, save, slug

MOST_POINTS = 1000
FAMILIES = (("sparsity", "sparsity"), ("loss", "loss"), ("lambda", "multipliers"), ("multiplier", "multipliers"))


def family(name: str) -> str:
    """Curves that belong in one panel: everything about sparsity, every loss, every multiplier."""
    for word, found in FAMILIES:
        if word in name.lower():
            return found
    return name


def training_curves(entries: list[Entry], looks: Looks, folder: Path) -> Plot | None:
    """One panel a family of curves; a line for every entry and curve of it, first finished seed."""
    panels: dict[str, list[tuple[Entry, str, list[tuple[float, float]]]]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if not entry.done:
            continue
        for name, points in entry.done[0].metrics.curves.items():
            good = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
            if not good:
                continue
            panels[family(name)].append((entry, name, thinned(good)))
            about = {"model": entry.model, "method": entry.full_label, "target_sparsity": entry.sparsity, "synthetic": entry.synthetic}
            rows += [{**about, "curve": name, "step": x, "value": y} for x, y in thinned(good)]
    if not panels:
        return None
    shown = sorted(panels, key=lambda p: (p != "loss", p != "sparsity", p))[:6]
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    with figure(7.6, 2.7 * lines + 0.5, lines, columns) as (fig, axes):
        handles: dict[str, Any] = {}
        for axis, name in zip(axes, shown, strict=False):
            kinds = list(dict.fromkeys(curve for _, curve, _ in panels[name]))
            for entry, curve, points in panels[name]:
                style = ("-", "--", ":", "-.")[kinds.index(curve) % 4]
                (line,) = axis.plot(*zip(*points, strict=True), color=looks.of(entry.full_label)["color"], ls=style, lw=1.2, alpha=0.85)
                handles.setdefault(fmt.short(entry.full_label, 26), line)
            axis.set_title(fmt.short(name, 40))
            axis.set_xlabel("step")
            if len(kinds) > 1:
                words = [f"{('solid', 'dashed', 'dotted', 'dash-dot')[i % 4]}: {fmt.short(k, 26)}" for i, k in enumerate(kinds[:4])]
                axis.text(0.99, 0.03, "\n".join(words), transform=axis.transAxes, ha="right", va="bottom", fontsize=7)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
        model = fmt.model_label(entries[0].model)
        plot = Plot(
            f"training_curves_{slug(model)}", f"Training curves, {model}", "First finished seed of every setting that trains.", "curves"
        )
        return save(fig, folder, plot, rows)


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them, evenly spaced, the last one included."""
    if len(points) <= MOST_POINTS:
        return points
    step = -(-len(points) // MOST_POINTS)
    return [*points[:-1:step], points[-1]]
