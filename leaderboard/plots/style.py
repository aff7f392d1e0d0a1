"""How every plot looks, is saved (SVG, PNG, CSV) and is put into the page."""

from __future__ import annotations

import csv
import html
import re
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunebench.leaderboard import formatting as fmt

INK, MUTED, GRID = "#1f2430", "#5b6472", "#d8dce3"
# Okabe-Ito, the dark ones first (yellow is too pale for lines on white and is darkened).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7a5195", "#8c564b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
LINES = ("-", "--", "-.", ":")
FOCUSABLE_POINTS = 80
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prunebench",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "text.parse_math": False,
}


@dataclass
class Plot:
    """One figure of the page with its files."""

    name: str
    title: str
    caption: str
    section: str
    svg: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Tips:
    """Text per drawn artist, attached by gid."""

    texts: dict[str, str] = field(default_factory=dict)

    def add(self, artist: Any, text: str) -> None:
        gid = f"tip{len(self.texts)}"
        artist.set_gid(gid)
        self.texts[gid] = text


@contextmanager
def figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> Any:
    """A figure with the house style and its axes as a flat list; closed afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(RC):
        fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **kwargs)
        try:
            yield fig, [axis for row in axes for axis in row]
        finally:
            plt.close(fig)


MOST_LINES = 8
"""So many lines a panel can be told apart; the others are in the CSV."""


def legend(fig: Any, handles: dict[str, Any]) -> None:
    """Every label below the panels, in as many columns as the longest leaves room for; the picture grows by their height."""
    if not handles:
        return
    inches = max(len(label) for label in handles) * 0.075 + 0.55  # a letter at 8.5 points, and the line before it
    columns = max(1, min(4, len(handles), int(fig.get_figwidth() / inches)))
    fig.set_figheight(fig.get_figheight() + 0.19 * -(-len(handles) // columns))
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def wrapped(text: str, width: int = 34, lines: int = 2) -> str:
    """A title over at most two lines, broken between words; what is longer still is cut at the end."""
    parts = textwrap.wrap(fmt.clean(text), width, break_on_hyphens=False) or [""]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], parts[lines - 1][: width - 1] + "…"]
    return "\n".join(parts)


class Looks:
    """Colour, marker and line of each method, the same in every plot."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.order = {label: i for i, label in enumerate(dict.fromkeys(labels))}

    def of(self, label: str) -> dict[str, Any]:
        if label == "dense":
            return {"color": INK, "marker": "*", "linestyle": "-"}
        i = self.order.get(label, 0)
        return {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[(i // len(PALETTE)) % len(LINES)],
        }


def save(fig: Any, folder: Path, plot: Plot, rows: Sequence[dict[str, Any]], tips: Tips | None = None) -> Plot:
    """Write `<name>.svg`, `.png`, `.csv` under `folder` and put the inline SVG into `plot`."""
    folder.mkdir(parents=True, exist_ok=True)
    svg_path, png_path, csv_path = (folder / f"{plot.name}.{kind}" for kind in ("svg", "png", "csv"))
    # The layout is worked out once, not again for each file.
    fig.get_layout_engine().execute(fig)
    fig.set_layout_engine("none")
    fig.savefig(svg_path, metadata={"Date": None, "Creator": "prunebench", "Title": plot.title})
    fig.savefig(png_path, dpi=130, metadata={"Software": "prunebench"})
    write_csv(csv_path, rows)
    plot.files = {path.suffix[1:]: f"{folder.name}/{path.name}" for path in (svg_path, png_path, csv_path)}
    plot.svg = inline(svg_path.read_text(encoding="utf-8"), plot, tips or Tips())
    return plot


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    fields = list(dict.fromkeys(k for row in rows for k in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: spreadsheet_safe(v) for k, v in row.items()})


def spreadsheet_safe(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets a quote in front."""
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode("utf-8")
        if value[:1] in ("=", "+", "@", "\t", "\r"):
            return "'" + value
    return value


def inline(svg: str, plot: Plot, tips: Tips) -> str:
    """SVG for the page: own ids, page colours through CSS variables, tips as data attributes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>", "", svg, count=1, flags=re.DOTALL)
    prefix = re.sub(r"[^a-z0-9]+", "-", plot.name.lower())
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'\s*xmlns:xlink="[^"]*"', "", svg)
    for i, colour in enumerate(PALETTE):
        svg = svg.replace(colour, f"var(--c{i})")
    svg = svg.replace(INK, "var(--plot-ink)").replace(MUTED, "var(--plot-muted)").replace(GRID, "var(--plot-grid)")
    svg = svg.replace("fill: #ffffff", "fill: var(--plot-face)", 1)
    svg = svg.replace("'DejaVu Sans', sans-serif", "var(--sans)").replace("'DejaVu Sans'", "var(--sans)")
    focus = ' tabindex="0"' if len(tips.texts) <= FOCUSABLE_POINTS else ""
    for gid, text in tips.texts.items():
        shown = html.escape(fmt.clean(text), quote=True)
        svg = svg.replace(
            f'<g id="{prefix}-{gid}">', f'<g id="{prefix}-{gid}" class="tip" role="img" data-tip="{shown}" aria-label="{shown}"{focus}>'
        )
    label = html.escape(fmt.clean(f"{plot.title}. {plot.caption}"), quote=True)
    head, _, rest = svg.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="group" aria-label="{label}">{rest}'


def slug(text: str, limit: int = 40) -> str:
    """A file name made from any text."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.")[:limit].strip("_.")
    return plain or "unnamed"
