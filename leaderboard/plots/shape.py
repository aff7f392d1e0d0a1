"""What pruning left of each layer: shapes side by side, a heat map, and how far methods agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leaderboard import formatting as fmt
from leaderboard.collect import Entry
from leaderboard.plots.style import MUTED, PALETTE, Plot, Tips, figure, save, slug
from leaderboard.record import LayerShape

MOST_PANELS = 24


def _shapes(entry: Entry) -> list[LayerShape]:
    return entry.done[0].metrics.shapes if entry.done else []


def layer_removed(shape: LayerShape) -> float:
    """Share of a layer's units that is gone: mean over attention (query heads) and MLP channels."""
    parts = []
    for is_there, kept, total in (
        (shape.attn, shape.q_heads_kept, shape.q_heads_total),
        (shape.mlp, shape.ffn_kept, shape.ffn_total),
    ):
        if total:
            parts.append(1 - (kept if is_there else 0) / total)
    return sum(parts) / len(parts) if parts else 0.0


def _rows(entry: Entry, shapes: list[LayerShape]) -> list[dict[str, Any]]:
    about = {"model": entry.model, "method": entry.label, "recovery": entry.recovery, "target_sparsity": entry.sparsity}
    seed = entry.done[0].run.seed
    return [{**about, "seed": seed, **s.model_dump(), "units_removed": layer_removed(s), "synthetic": entry.synthetic} for s in shapes]


def layer_shapes(entries: list[Entry], folder: Path) -> Plot | None:
    """Per pruned model: kept KV groups and MLP channels of every layer."""
    shown = [e for e in entries if not e.is_dense and _shapes(e)]
    if not shown:
        return None
    left_out = max(0, len(shown) - MOST_PANELS)
    shown = shown[:MOST_PANELS]
    model = entries[0].model
    rows: list[dict[str, Any]] = []
    tips = Tips()
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    with figure(7.6, 1.9 * lines + 0.5, lines, columns, sharex=True, sharey=True) as (fig, axes):
        handles: dict[str, Any] = {}
        for axis, entry in zip(axes, shown, strict=False):
            shapes = _shapes(entry)
            rows += _rows(entry, shapes)
            layers = [s.layer for s in shapes]
            groups = [100 * (s.kv_groups_kept if s.attn else 0) / max(s.kv_groups_total, 1) for s in shapes]
            channels = [100 * (s.ffn_kept if s.mlp else 0) / max(s.ffn_total, 1) for s in shapes]
            bars = axis.bar(layers, channels, color=PALETTE[5], width=0.85, alpha=0.75)
            (line,) = axis.plot(layers, groups, color=PALETTE[1], marker="o", ms=2.5, lw=1.0, drawstyle="steps-mid")
            handles.setdefault("MLP channels kept", bars)
            handles.setdefault("KV groups kept", line)
            if len(shown) * len(layers) <= 1200:
                for bar, s in zip(bars, shapes, strict=True):
                    tips.add(
                        bar,
                        f"{entry.title}, layer {s.layer}: {s.kv_groups_kept}/{s.kv_groups_total} KV groups, "
                        f"{s.q_heads_kept}/{s.q_heads_total} query heads, {s.ffn_kept}/{s.ffn_total} MLP channels",
                    )
            axis.set_title(f"{fmt.short(entry.full_label, 26)}, {fmt.sparsity(entry.sparsity)}", fontsize=8.5)
            axis.set_ylim(0, 104)
            axis.grid(axis="x", visible=False)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        fig.supxlabel("layer", fontsize=9, color=MUTED)
        fig.supylabel("kept, %", fontsize=9, color=MUTED)
        fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        caption = "Kept share of every decoder layer, first seed." + (f" {left_out} more are in the details view." if left_out else "")
        name = f"layer_shapes_{slug(fmt.model_label(model))}"
        return save(fig, folder, Plot(name, f"What stays of each layer, {fmt.model_label(model)}", caption, "shape"), rows, tips)
