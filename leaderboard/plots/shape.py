"""What pruning left of each layer: shapes side by side, a heat map, and how far methods agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.plots.style import PALETTE, Plot, Tips, figure, save, slug
from prunebench.leaderboard.record import LayerShape, cell_dir

MOST_PANELS = 12
MOST_ROWS = 48


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
            axis.set_title(f"{fmt.short(entry.line, 26)}, {fmt.sparsity(entry.sparsity)}", fontsize=8.5)
            axis.set_ylim(0, 104)
            axis.grid(axis="x", visible=False)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        for axis in axes[-columns:]:
            axis.set_xlabel("layer")
        for axis in axes[::columns]:
            axis.set_ylabel("kept, %")
        fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        caption = "Kept share of every decoder layer, first seed." + (f" {left_out} more are in the details view." if left_out else "")
        name = f"layer_shapes_{slug(fmt.model_label(model))}"
        return save(fig, folder, Plot(name, f"What stays of each layer, {fmt.model_label(model)}", caption, "shape"), rows, tips)


def layer_heat_map(entries: list[Entry], folder: Path) -> Plot | None:
    """Layer by method: share of units removed."""
    shown = [e for e in entries if not e.is_dense and _shapes(e)]
    if not shown:
        return None
    shown = shown[:MOST_ROWS]
    rows = [row for e in shown for row in _rows(e, _shapes(e))]
    depth = max(s.layer for e in shown for s in _shapes(e)) + 1
    tips = Tips()
    with figure(7.6, 0.26 * len(shown) + 1.6) as (fig, axes):
        axis = axes[0]
        import matplotlib as mpl
        from matplotlib.patches import Rectangle

        colours = mpl.colormaps["YlGnBu"]
        for y, entry in enumerate(shown):
            for s in _shapes(entry):
                removed = layer_removed(s)
                cell = Rectangle((s.layer, y), 1, 1, facecolor=colours(removed), edgecolor="white", lw=0.4)
                axis.add_patch(cell)
                if len(shown) * depth <= 1200:
                    tips.add(cell, f"{entry.title}, layer {s.layer}: {100 * removed:.0f} % of units removed")
        axis.set_xlim(0, depth)
        axis.set_ylim(len(shown), 0)
        axis.set_yticks([y + 0.5 for y in range(len(shown))], [f"{fmt.short(e.line, 26)}, {fmt.sparsity(e.sparsity)}" for e in shown])
        step = max(1, depth // 16)
        axis.set_xticks([x + 0.5 for x in range(0, depth, step)], [str(x) for x in range(0, depth, step)])
        axis.set_xlabel("layer")
        axis.grid(visible=False)
        axis.tick_params(length=0)
        bar = fig.colorbar(mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 100), colours), ax=axis, shrink=0.9, aspect=14, pad=0.02)
        bar.set_label("units removed, %")
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(False)  # vector, like the rest
        model = fmt.model_label(entries[0].model)
        caption = "Mean of the removed shares of query heads and MLP channels; dark means that more is gone."
        return save(fig, folder, Plot(f"layer_heat_map_{slug(model)}", f"Where each method cuts, {model}", caption, "shape"), rows, tips)


def agreement(entries: list[Entry], out_dir: Path, folder: Path) -> Plot | None:
    """How far methods keep the same units: Jaccard overlap of kept KV groups and MLP channels at one sparsity."""
    groups: dict[tuple[float | None, str, str], list[tuple[Entry, dict[str, Any]]]] = {}
    for entry in entries:
        if entry.is_dense or not entry.done:
            continue
        masks = read_masks(out_dir, entry)
        if masks is not None:
            groups.setdefault((entry.sparsity, entry.basis, entry.track), []).append((entry, masks))
    panels = [(key, found) for key, found in groups.items() if len(found) > 1][:6]
    if not panels:
        return None
    rows: list[dict[str, Any]] = []
    tips = Tips()
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    most = max(len(found) for _, found in panels)
    with figure(3.9 * columns, (0.36 * most + 1.6) * lines, lines, columns) as (fig, axes):
        import matplotlib as mpl

        colours = mpl.colormaps["YlGnBu"]
        for axis, ((sparsity, basis, track), found) in zip(axes, panels, strict=False):
            for y, (a, a_masks) in enumerate(found):
                for x, (b, b_masks) in enumerate(found):
                    shared = overlap(a_masks, b_masks)
                    if shared is None:
                        continue
                    cell = mpl.patches.Rectangle((x, y), 1, 1, facecolor=colours(shared), edgecolor="white", lw=0.6)
                    axis.add_patch(cell)
                    tips.add(cell, f"{a.line} and {b.line} at {fmt.sparsity(sparsity)}: {100 * shared:.0f} % of kept units shared")
                    if len(found) <= 10:
                        ink = "#000000" if shared < 0.6 else "#ffffff"
                        axis.text(x + 0.5, y + 0.5, f"{100 * shared:.0f}", ha="center", va="center", color=ink, fontsize=8)
                    about = {"model": a.model, "sparsity": sparsity, "basis": basis, "track": track, "synthetic": a.synthetic}
                    rows.append({**about, "a": a.line, "b": b.line, "jaccard": shared})
            names = [fmt.short(e.line, 22) for e, _ in found]
            axis.set_xlim(0, len(found))
            axis.set_ylim(len(found), 0)
            axis.set_xticks([i + 0.5 for i in range(len(found))], names, rotation=35, ha="right")
            axis.set_yticks([i + 0.5 for i in range(len(found))], names)
            axis.grid(visible=False)
            axis.tick_params(length=0)
            axis.set_title(f"{fmt.sparsity(sparsity)}, {track}")
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        model = fmt.model_label(entries[0].model)
        caption = "Kept by both / kept by either, in percent: KV groups and MLP channels of all layers, each layer's kinds counted alike."
        return save(fig, folder, Plot(f"agreement_{slug(model)}", f"Do methods keep the same units? {model}", caption, "shape"), rows, tips)


def read_masks(out_dir: Path, entry: Entry) -> dict[str, Any] | None:
    """The boolean masks of the first finished seed; None where there is no readable file."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = cell_dir(out_dir, entry.done[0].run.cell_id) / "masks.safetensors"
    if not path.is_file():
        return None
    try:
        return {name: np.asarray(t, dtype=bool) for name, t in load_file(path).items() if name.startswith(("kv_groups", "ffn"))}
    except (OSError, ValueError, SafetensorError):
        return None


def overlap(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    """Mean Jaccard index over the tensors that both have; None when shapes differ."""
    if not a or a.keys() != b.keys() or any(a[k].shape != b[k].shape for k in a):
        return None
    shares = []
    for name in a:
        either = int((a[name] | b[name]).sum())
        shares.append(int((a[name] & b[name]).sum()) / either if either else 1.0)
    return sum(shares) / len(shares)
