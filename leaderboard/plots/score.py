"""Score against sparsity, perplexity against parameters, quality against latency and cost."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.collect import Entry, Score
from prunebench.leaderboard.plots.style import GRID, INK, MUTED, Looks, Plot, Tips, figure, save, slug
from prunebench.leaderboard.statistics import pareto_front
from prunebench.leaderboard.tables import score_cell, suite_ids

COLUMNS = 2


def _shown(score: Score) -> float:
    return 100 * score.value if score.kind == "percent" else score.value


def _bounds(score: Score) -> tuple[float, float]:
    if score.interval is None:
        return _shown(score), _shown(score)
    scale = 100 if score.kind == "percent" else 1
    return scale * score.interval.low, scale * score.interval.high


def _row(entry: Entry, suite: str, score: Score, **more: Any) -> dict[str, Any]:
    low, high = (score.interval.low, score.interval.high) if score.interval else (None, None)
    return {
        "model": entry.model,
        "method": entry.label,
        "recovery": entry.recovery,
        "track": entry.track,
        "target_sparsity": entry.sparsity or 0.0,
        "basis": entry.basis,
        "suite": suite,
        "metric": score.metric,
        "value": score.value,
        "low": low,
        "high": high,
        "n": score.n,
        "seeds": score.seeds,
        "synthetic": entry.synthetic,
        **more,
    }


def score_against_sparsity(entries: list[Entry], looks: Looks, folder: Path) -> Plot | None:
    """One panel a suite: every method's line over the measured sparsity, 95 % band, dense and chance levels."""
    suites = [s for s in suite_ids(entries) if any(s in e.suites and e.suites[s].mean for e in entries)]
    if not suites:
        return None
    model = entries[0].model
    rows: list[dict[str, Any]] = []
    tips = Tips()
    lines = -(-len(suites) // COLUMNS)
    labels: dict[str, Any] = {}
    with figure(8.6, 2.9 * lines + 0.5, lines, min(COLUMNS, len(suites))) as (fig, axes):
        for axis, suite in zip(axes, suites, strict=False):
            _panel(axis, suite, [e for e in entries if suite in e.suites], looks, rows, tips, labels)
        for axis in axes[len(suites) :]:
            axis.set_axis_off()
        _legend(fig, labels)
        name = f"score_vs_sparsity_{slug(fmt.model_label(model))}"
        caption = "Bands and bars: 95 % intervals. Grey band: the dense model. Dotted: what guessing gives."
        title = f"Score against sparsity, {fmt.model_label(model)}"
        return save(fig, folder, Plot(name, title, caption, "score"), rows, tips)


def _legend(fig: Any, labels: dict[str, Any]) -> None:
    if labels:
        fig.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=min(4, len(labels)))


def _panel(
    axis: Any, suite: str, entries: list[Entry], looks: Looks, rows: list[dict[str, Any]], tips: Tips, labels: dict[str, Any]
) -> None:
    curves: dict[str, list[tuple[float, Entry, Score]]] = defaultdict(list)
    kind: fmt.Kind = "number"
    for entry in entries:
        mean = entry.suites[suite].mean
        if mean is None:
            continue
        kind = mean.kind
        measured = entry.mean_of("achieved_sparsity_total" if entry.basis == "total" else "achieved_sparsity_blocks")
        x = 100 * (measured if measured is not None else entry.sparsity or 0.0)
        rows.append(_row(entry, suite, mean, measured_sparsity=x / 100))
        if entry.is_dense:
            low, high = _bounds(mean)
            axis.axhspan(low, high, color=MUTED, alpha=0.15, lw=0)
            axis.axhline(_shown(mean), color=INK, lw=0.8)
            (star,) = axis.plot([0], [_shown(mean)], color=INK, marker="*", ms=9, ls="none", zorder=5)
            tips.add(star, f"dense {fmt.model_label(entry.model)}: {score_cell(mean).full} {fmt.score_unit(kind)} on {suite}")
            labels.setdefault("dense", star)
        else:
            curves[entry.line].append((x, entry, mean))
        if mean.chance is not None:
            axis.axhline(100 * mean.chance, color=MUTED, lw=1.0, ls=":")
    for label, points in curves.items():
        points.sort(key=lambda p: p[0])
        look = looks.of(label)
        xs, ys = [p[0] for p in points], [_shown(p[2]) for p in points]
        lows, highs = zip(*(_bounds(p[2]) for p in points), strict=True)
        axis.fill_between(xs, lows, highs, color=look["color"], alpha=0.12, lw=0)
        axis.plot(xs, ys, color=look["color"], ls=look["linestyle"], lw=1.4)
        axis.vlines(xs, lows, highs, color=look["color"], lw=1.0, alpha=0.7)
        for x, y, (_, entry, score) in zip(xs, ys, points, strict=True):
            (dot,) = axis.plot([x], [y], color=look["color"], marker=look["marker"], ms=4.5, ls="none", mec="white", mew=0.5)
            labels.setdefault(label, dot)
            cell = score_cell(score)
            tips.add(dot, f"{entry.title}: {cell.full} {fmt.score_unit(kind)} on {suite}")
    if kind == "perplexity":
        _log_axis(axis, "y")
    axis.set_xlim(left=-1.5)
    axis.set_title(fmt.short(suite, 44))
    axis.set_xlabel("parameters removed, %")
    axis.set_ylabel("score, %" if kind == "percent" else "perplexity (log)" if kind == "perplexity" else "value")


def _log_axis(axis: Any, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis, f"set_{which}scale")("log")
    part = getattr(axis, f"{which}axis")
    part.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=8))
    part.set_minor_formatter(NullFormatter())
    part.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v < 1e5 else f"{v:.0e}"))


def perplexity_against_parameters(entries: list[Entry], looks: Looks, folder: Path) -> Plot | None:
    """Every entry with a perplexity: how large it is, how well it predicts."""
    points = [(e, s) for e in entries for s in e.suites.values() if s.mean is not None and s.mean.kind == "perplexity"]
    points = [(e, s) for e, s in points if e.mean_of("params_total")]
    if not points:
        return None
    return _scatter(
        points,
        lambda e: (e.mean_of("params_total") or 0) / 1e6,
        "parameters, millions",
        "perplexity_vs_params",
        "Perplexity against parameters",
        looks,
        folder,
        front=True,
    )


def quality_against(entries: list[Entry], looks: Looks, folder: Path, what: str) -> Plot | None:
    """Score of the first suite against latency or the cost of pruning, with the Pareto front."""
    suites = [s for s in suite_ids(entries) if any(s in e.suites and e.suites[s].mean for e in entries)]
    if not suites:
        return None
    axes = {
        "latency": (lambda e: e.efficiency("latency_ms"), "latency, ms"),
        "cost": (lambda e: e.stage_seconds("prune"), "time to prune, seconds (log)"),
    }
    measure, label = axes[what]
    points = [(e, e.suites[suites[0]]) for e in entries if suites[0] in e.suites and e.suites[suites[0]].mean is not None]
    points = [(e, s) for e, s in points if (measure(e) or 0) > 0]
    if len(points) < 2:
        return None
    return _scatter(
        points, measure, label, f"quality_vs_{what}", f"Quality against {what}", looks, folder, front=True, log_x=what == "cost"
    )


def _scatter(
    points: list[Any], measure: Any, x_label: str, name: str, title: str, looks: Looks, folder: Path, *, front: bool, log_x: bool = False
) -> Plot:
    rows: list[dict[str, Any]] = []
    tips = Tips()
    labels: dict[str, Any] = {}
    model = points[0][0].model
    first = points[0][1].mean
    suites = list(dict.fromkeys(s.id for _, s in points))
    points = [(e, s) for e, s in points if s.id == suites[0]]
    with figure(7.0, 3.9) as (fig, axes):
        axis = axes[0]
        xs = [float(measure(e)) for e, _ in points]
        ys = [_shown(s.mean) for _, s in points]
        best = pareto_front(xs, [y if first.higher_is_better else -y for y in ys]) if front else []
        for i, ((entry, suite), x, y) in enumerate(zip(points, xs, ys, strict=True)):
            look = looks.of("dense" if entry.is_dense else entry.line)
            axis.vlines([x], *_bounds(suite.mean), color=look["color"], lw=1.0, alpha=0.6)
            (dot,) = axis.plot([x], [y], color=look["color"], marker=look["marker"], ms=9 if entry.is_dense else 6, ls="none")
            labels.setdefault("dense" if entry.is_dense else entry.line, dot)
            shown = fmt.significant(x, 3)
            tips.add(dot, f"{entry.title}: {score_cell(suite.mean).full} {fmt.score_unit(suite.mean.kind)} at {shown} ({x_label})")
            rows.append(_row(entry, suite.id, suite.mean, x=x, x_label=x_label, on_pareto_front=i in best))
        axis.plot([xs[i] for i in best], [ys[i] for i in best], color=MUTED, lw=1.0, ls="--", zorder=0, drawstyle="steps-post")
        if not first.higher_is_better:
            _log_axis(axis, "y")
        if log_x:
            _log_axis(axis, "x")
        axis.set_xlabel(x_label)
        axis.set_ylabel("score, %" if first.kind == "percent" else "perplexity (log)")
        axis.set_title(fmt.short(suites[0], 60))
        axis.grid(color=GRID)
        _legend(fig, labels)
        plot = Plot(
            f"{name}_{slug(fmt.model_label(model))}",
            f"{title}, {fmt.model_label(model)}",
            "Bars: 95 % intervals. Dashed: Pareto front, nothing shown is both cheaper and better. Star: the dense model.",
            "tradeoff",
        )
        return save(fig, folder, plot, rows, tips)
