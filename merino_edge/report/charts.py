"""The charts of the report's page, drawn by matplotlib from values of the records.

The colors become CSS variables of the page, so a chart follows the page's light or dark theme.
"""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from statistics import mean, median
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from merino_edge.records.evaluation import Evaluation
from merino_edge.records.schema import Record
from merino_edge.report.series import REFERENCE, Series
from merino_edge.report.summary import Summary
from merino_edge.report.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 304  # px, of a phone; the page scales the drawing to its column
MAX_LINES, MAX_PANELS = 10, 6  # in one chart; the table has the others
SLICES = 8  # consecutive parts of a decode row's steps; each is drawn as its median
MIN_SPAN = 0.1  # of the longest line's extent in x; a shorter line shows no trend and is left out
LOG_SPAN = 4  # values whose largest exceeds this many times the smallest are drawn on a logarithmic axis
TEXT_PX, LINE_PX, CHARACTER_PX = 11, 16, 7.0  # font size, line height and the largest average width of a character

# The light theme's colors, each with the CSS variable that replaces it. e0 to e5 distinguish series.
COLORS = {
    "e0": "#1462ab", "e1": "#c04d00", "e2": "#00795a", "e3": "#a23f83", "e4": "#856400", "e5": "#2a7f9e",
    "ink": "#1b1d1f", "quiet": "#5c6166", "grid": "#ecece8", "card": "#fffffe", "rest": "#9aa0a6",
}  # fmt: skip
MARKERS = "osD^vPX"  # seven shapes and six colors: 42 series differ
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": TEXT_PX, "font.family": "DejaVu Sans",
    "figure.facecolor": "none", "axes.facecolor": "none", "axes.edgecolor": COLORS["quiet"],
    "axes.labelcolor": COLORS["quiet"], "axes.grid": True, "axes.axisbelow": True, "grid.color": COLORS["grid"],
    "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": COLORS["quiet"], "ytick.color": COLORS["quiet"],
    "text.color": COLORS["ink"], "legend.frameon": False, "legend.labelspacing": 0.3, "lines.markersize": 6,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart. values: one text per series, for screen readers."""

    name: str
    title: str
    values: Sequence[str]
    note: str
    draw: "Callable[[], Figure]"

    @property
    def svg(self) -> str:
        """Return an element for the page, without script, date or external references."""
        import matplotlib

        out = StringIO()
        with warnings.catch_warnings(), matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}):
            warnings.simplefilter("ignore", UserWarning)  # the browser has the characters that matplotlib's font lacks
            self.draw().savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        svg = out.getvalue()
        svg = svg[svg.index("<svg") :]
        for variable, color in COLORS.items():
            svg = svg.replace(color, f"var(--{variable})")
        svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{self.name}-", svg)  # ids are unique on the page
        return re.sub(r' width="[^"]*" height="[^"]*"', "", svg, count=1)


@dataclass(frozen=True)
class Curve:
    """Points of one series: a line, or a single mark. style: matplotlib's keywords."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    style: dict[str, Any]


def charts_of(summary: Summary) -> list[Chart]:
    """Return the charts that the records have values for, in the order of the page."""
    styles = {entry.label: style(index, entry) for index, entry in enumerate(summary.series)}
    charts = (
        speed_against_size(summary, styles), decode_against_cache(summary, styles),
        latency(summary), memory(summary), accuracy(summary, styles),
    )  # fmt: skip
    return [chart for chart in charts if chart.values]


def style(index: int, series: Series) -> dict[str, Any]:
    """Return a series' color and marker, the same in all charts. The reference has hollow marks and dashed lines."""
    color = COLORS[f"e{index % 6}"]
    shown = {"color": color, "marker": MARKERS[index % len(MARKERS)], "markeredgecolor": color}
    return {**shown, "markerfacecolor": COLORS["card"], "linestyle": "--"} if series.is_reference else shown


def speed_against_size(summary: Summary, styles: dict[str, dict[str, Any]]) -> Chart:
    rows = [(entry, row) for entry in summary.series if (row := entry.decode) and row.tok_s and entry.params]
    curves = [Curve(flagged(entry, row), ((entry.params or 0) / 1e6,), (row.tok_s or 0,), styles[entry.label])
              for entry, row in rows]  # fmt: skip
    known = [curve for curve, (entry, _) in zip(curves, rows, strict=True) if entry.is_reference]
    reference = max(known, key=lambda curve: curve.y) if known else None

    def draw() -> "Figure":
        figure = curves_figure(curves, "parameters, M (log scale)", "tokens/s (log scale)")
        axes = figure.axes[0]
        logarithmic(axes, "x", [x for curve in curves for x in curve.x])
        logarithmic(axes, "y", [y for curve in curves for y in curve.y])
        if reference is not None:
            axes.axvline(reference.x[0], color=COLORS["quiet"], linestyle=":", linewidth=1, zorder=0)
            axes.axhline(reference.y[0], color=COLORS["quiet"], linestyle=":", linewidth=1, zorder=0)
        return figure

    lead = f"Left of and above the dotted lines: smaller and faster than {REFERENCE} at its fastest. "
    note = f"{lead if known else ''}Each model's decode row with the least cached."
    values = [f"{entry.label}, {entry.engine}: {number(row.tok_s or 0)} tokens/s ({row.test})" for entry, row in rows]
    return Chart(name="size", title="Decode speed against size", values=values, note=note, draw=draw)


def decode_against_cache(summary: Summary, styles: dict[str, dict[str, Any]]) -> Chart:
    points = {entry.label: cache_points(entry) for entry in summary.series}
    spans = {label: line[-1][0] - line[0][0] for label, line in points.items() if line}
    drawn = {label: points[label] for label, span in spans.items() if span and span >= MIN_SPAN * max(spans.values())}
    curves = [Curve(label, tuple(x for x, _ in line), tuple(y for _, y in line), styles[label])
              for label, line in drawn.items()][:MAX_LINES]  # fmt: skip

    def draw() -> "Figure":
        values = [y for curve in curves for y in curve.y]
        wide = max(values) / min(values) > LOG_SPAN
        figure = curves_figure(curves, "tokens in the cache", "ms per token" + (" (log scale)" if wide else ""))
        axes = figure.axes[0]
        axes.set_xlim(left=0)
        if wide:
            logarithmic(axes, "y", values)
        else:
            axes.set_ylim(bottom=0)
        return figure

    note = f"Medians: of each depth, or of slices of consecutive steps if there is one depth.{cut(drawn, MAX_LINES)}"
    values = [f"{curve.label}: {number(curve.y[0])} ms at {number(curve.x[0])} tokens, {number(curve.y[-1])} ms at"
              f" {number(curve.x[-1])}" for curve in curves]  # fmt: skip
    return Chart(name="cache", title="Decode time as the cache fills", values=values, note=note, draw=draw)


def latency(summary: Summary) -> Chart:
    panels = [(flagged(entry, row), row.samples_ms) for entry in summary.series
              if (row := entry.decode) and row.samples_ms and len(row.samples_ms) > 1]  # fmt: skip
    values = [f"{label}: median {number(float(np.median(samples)))} ms" for label, samples in panels]

    def draw() -> "Figure":
        shown = panels[:MAX_PANELS]
        figure = empty_figure(128 * len(shown))
        for axes, (label, samples) in zip(np.atleast_1d(figure.subplots(len(shown))), shown, strict=True):
            ranks = [float(np.percentile(samples, rank)) for rank in (50, 90, 99)]
            low = min(samples)
            high = max(low + 1.08 * (ranks[-1] - low), low * 1.01)
            axes.hist(samples, bins=36, range=(low, high), histtype="stepfilled", color=COLORS["e0"])
            for rank in ranks:
                axes.axvline(rank, color=COLORS["ink"], linestyle="--", linewidth=0.8)
            axes.set_title(shorten(label, int(WIDTH / CHARACTER_PX), placeholder="…"), loc="left", fontsize=TEXT_PX)
            words = ", ".join(f"p{rank} {number(value)}" for rank, value in zip((50, 90, 99), ranks, strict=True))
            axes.set(xlim=(low, high), yticks=[])
            axes.set_xlabel(f"{words} ms")
            axes.spines["left"].set_visible(False)
            axes.locator_params(axis="x", nbins=5)
        return figure

    note = "ms per decode step; each panel has its own axis. Dashed lines: the 50th, 90th and 99th percentile."
    return Chart(
        name="latency", title="Time between two tokens", values=values[:MAX_PANELS],
        note=note + cut(panels, MAX_PANELS), draw=draw,
    )  # fmt: skip


def memory(summary: Summary) -> Chart:
    """Draw one bar per series below its text: the parts of its peak, stacked."""
    rows = [(parts, (parts.weights_mb, parts.kv_mb or 0, parts.rest_mb)) for parts in summary.memory]
    texts = [f"{parts.series.label}: {number(sum(values))} MB" for parts, values in rows]
    colors = {"weights": COLORS["e0"], "KV cache at full context": COLORS["e1"], "rest": COLORS["rest"]}

    def draw() -> "Figure":
        from matplotlib.patches import Patch

        lines = [wrapped(text.replace(" MB", "\u00a0MB")) for text in texts]
        row_px = 22 + LINE_PX * max(text.count("\n") + 1 for text in lines)
        figure = empty_figure(row_px * len(rows) + 40 + LINE_PX)
        axes = figure.subplots()
        for y, ((_, values), text) in enumerate(zip(rows, lines, strict=True)):
            left = 0.0
            for value, color in zip(values, colors.values(), strict=True):
                axes.barh(y, value, 14 / row_px, left, color=color)
                left += value
            axes.annotate(text, (0, y - 8 / row_px), (1, 2), textcoords="offset points", va="bottom")
        axes.set(xlabel="MB", yticks=[], ylim=(len(rows) - 1 + 12 / row_px, 12 / row_px - 1), xlim=(0, None))
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
        figure.legend(handles=[Patch(color=color) for color in colors.values()], labels=list(colors),
                      loc="outside upper left", ncols=len(colors), handlelength=1, columnspacing=1)  # fmt: skip
        return figure

    split = any(parts.kv_mb is not None for parts in summary.memory)
    note = "The KV cache is computed from the geometry; without one it is part of the rest. " if split else ""
    note += f"Rest: Python, engine, activations{'' if split else ', KV cache'}."
    return Chart(name="memory", title="Peak memory", values=texts, note=note, draw=draw)


def accuracy(summary: Summary, styles: dict[str, dict[str, Any]]) -> Chart:
    scored, tasks = accuracies(summary.evaluations, summary.series)
    curves = [Curve(entry.label, (row.ms_p50 or 0,), (100 * share,), styles[entry.label])
              for entry, share in scored if (row := entry.decode)]  # fmt: skip

    def draw() -> "Figure":
        figure = curves_figure(curves, "ms per token", "accuracy, %")
        axes = figure.axes[0]
        axes.set_xlim(0, 1.1 * max(curve.x[0] for curve in curves))
        axes.set_ylim(0, 1.1 * max(curve.y[0] for curve in curves) or 1)
        return figure

    values = [f"{curve.label}: {curve.y[0]:.1f} % at {number(curve.x[0])} ms" for curve in curves]
    return Chart(name="accuracy", title="Accuracy against decode time", values=values, draw=draw,
                 note=f"Mean over {', '.join(tasks)}.")  # fmt: skip


def empty_figure(height: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")  # matplotlib's SVG has 72 px per inch


def curves_figure(curves: Sequence[Curve], x_title: str, y_title: str) -> "Figure":
    """Draw axes with all curves and, below them, a legend."""
    labels = [wrapped(curve.label, WIDTH - 40) for curve in curves]
    figure = empty_figure(240 + LINE_PX * sum(label.count("\n") + 1 for label in labels))
    axes = figure.subplots()
    points = {"linestyle": ""} if all(len(curve.x) == 1 for curve in curves) else {}
    handles = [axes.plot(curve.x, curve.y, **{**curve.style, **points})[0] for curve in curves]
    axes.set(xlabel=x_title, ylabel=y_title)
    axes.margins(0.08)
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    figure.legend(handles, labels, loc="outside lower left")
    return figure


def logarithmic(axes: "Axes", name: str, values: Sequence[float]) -> None:
    """Make the axis `name`, x or y, logarithmic, with labels at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    decades = math.log10(max(values) / min(values))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axis.set_major_formatter(lambda value, _: number(value))
    axis.set_minor_formatter(NullFormatter())


def wrapped(text: str, width: float = WIDTH) -> str:
    """Wrap the text into at most two lines of `width` px."""
    columns = int(width / CHARACTER_PX)
    return fill(shorten(text, 2 * columns - 8, placeholder="…"), columns)


def flagged(series: Series, row: Record) -> str:
    """Return the series' label with the flags of a disturbed row."""
    return " ".join([series.label, *(f"({flag})" for flag in row.flags)])


def cut(drawn: Sequence[object] | dict[str, Any], most: int) -> str:
    return f" The first {most} of {len(drawn)}; the table has all." if len(drawn) > most else ""


def cache_points(series: Series) -> tuple[tuple[float, float], ...]:
    """Return (tokens in the cache, median ms) of each decode row; for a single row, of SLICES parts of its steps."""
    medians: dict[float, float] = {}
    rows = [row for row in series.records if row.decodes and row.rounds]
    for row in rows:
        steps = min(len(samples_ms) for samples_ms in row.rounds)
        if steps:
            edges = np.linspace(0, steps, (min(SLICES, steps) if len(rows) == 1 else 1) + 1).astype(int)
            for start, end in zip(edges, edges[1:], strict=False):
                samples = [sample for samples_ms in row.rounds for sample in samples_ms[start:end]]
                medians[row.cached + (int(start) + int(end) - 1) / 2] = median(samples)
    return tuple(sorted(medians.items()))


def accuracies(
    evaluations: Sequence[Evaluation], series: Sequence[Series]
) -> tuple[list[tuple[Series, float]], list[str]]:
    """Return the mean accuracy of each series with a decode row, and its tasks: those that all such bundles have."""
    by_bundle = {entry.records[0].bundle_sha256: entry for entry in series if entry.decode and entry.decode.ms_p50}
    scores: dict[str, dict[str, float]] = {}
    for evaluation in evaluations:
        name, metric = evaluation.main
        if evaluation.sha256 in by_bundle and name in ("acc", "acc_norm"):
            scores.setdefault(evaluation.sha256, {})[evaluation.task] = metric.value
    tasks = sorted(set.intersection(*map(set, scores.values()))) if scores else []
    scored = [(by_bundle[bundle], mean(of[task] for task in tasks)) for bundle, of in scores.items()] if tasks else []
    return scored, tasks
