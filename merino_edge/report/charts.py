"""The four kinds of chart of the report's page. Each takes values and a width in px and returns a drawing.

Which values a chart shows is `page_charts`'; where labels go is `labels`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np

from merino_edge.report import labels
from merino_edge.report.labels import Mark
from merino_edge.report.svg import (
    Plot,
    Scale,
    add,
    drawing,
    linear,
    linear_ticks,
    log_ticks,
    logarithmic,
    marker,
    number,
    shape_of,
    shortened,
    text_px,
    thinned,
    tip,
    write,
    x_axis,
    y_axis,
)

LOG_SPAN = 4  # values whose largest exceeds this many times the smallest are drawn on a logarithmic axis


@dataclass(frozen=True)
class Titles:
    """title and description: for screen readers. x, y: of the axes, with units."""

    title: str
    description: str
    x: str = ""
    y: str = ""


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    tip: str
    precision: str
    class_: str  # e0, e1, ...: the engine's color; `hollow` in addition for the reference


@dataclass(frozen=True)
class Line:
    points: tuple[tuple[float, float], ...]
    label: str
    precision: str
    class_: str


@dataclass(frozen=True)
class Part:
    value: float
    name: str
    class_: str


@dataclass(frozen=True)
class Bar:
    """Parts are stacked from zero; `note` is set at the right end of the label's line."""

    label: str
    note: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Distribution:
    samples: tuple[float, ...]
    label: str
    class_: str
    quantiles: tuple[tuple[str, float], ...]


def scatter(name: str, titles: Titles, points: Sequence[Point], reference: Point | None, width: int) -> Element:
    """Both axes are logarithmic. Dotted lines cross at the reference: above is faster, left is smaller."""
    height = 340
    svg = drawing(name, titles.title, titles.description, width, height)
    plot = Plot(44, 34, width - 10, height - 44)
    x_ticks = log_ticks(min(one.x for one in points) * 0.9, max(one.x for one in points) * 1.1)
    y_ticks = log_ticks(min(one.y for one in points) * 0.9, max(one.y for one in points) * 1.1)
    x = logarithmic(x_ticks[0], x_ticks[-1], plot.left, plot.right)
    y = logarithmic(y_ticks[0], y_ticks[-1], plot.bottom, plot.top)
    y_axis(svg, plot, y, y_ticks, titles.y)
    x_axis(svg, plot, x, thinned(x_ticks, max(3, int(width / 60))), titles.x)
    if reference is not None:
        at_x, at_y = x(reference.x), y(reference.y)
        add(svg, "line", x1=at_x, x2=at_x, y1=plot.top, y2=plot.bottom, class_="reference")
        add(svg, "line", x1=plot.left, x2=plot.right, y1=at_y, y2=at_y, class_="reference")
    for one in points:
        tip(marker(svg, x(one.x), y(one.y), one.precision, f"mark {one.class_}"), one.tip)
    labels.draw(svg, labels.beside(plot, [Mark(x(one.x), y(one.y), one.label) for one in points]))
    return svg


def lines(name: str, titles: Titles, series: Sequence[Line], width: int) -> Element:
    height = 300
    svg = drawing(name, titles.title, titles.description, width, height)
    room_px = width / 3.2  # of a label
    longest_px = max(text_px(shortened(one.label, room_px)) for one in series)
    plot = Plot(44, 34, width - 12 - longest_px, height - 44)
    values = [value for one in series for _, value in one.points]
    furthest = max(at for one in series for at, _ in one.points)
    x_ticks = [tick for tick in linear_ticks(furthest, 4 if width < 400 else 6) if tick <= furthest * 1.02]
    x = linear(0, furthest * 1.02, plot.left, plot.right)
    y, y_ticks = _value_scale(values, plot)
    y_axis(svg, plot, y, y_ticks, titles.y + (" (log scale)" if y_ticks[0] > 0 else ""))
    x_axis(svg, plot, x, x_ticks, titles.x)
    for one in series:
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in one.points)
        add(svg, "polyline", points=path, class_=f"line {one.class_} {shape_of(one.precision)}")
        for at, value in one.points:
            mark = marker(svg, x(at), y(value), one.precision, f"mark {one.class_}", 3)
            tip(mark, f"{one.label}: {number(value)} at {number(at)}")
    ends = [Mark(x(one.points[-1][0]), y(one.points[-1][1]), one.label) for one in series]
    labels.draw(svg, labels.column(plot, ends, plot.right + 7, room_px))
    return svg


def bars(name: str, titles: Titles, rows: Sequence[Bar], limit: float | None, width: int) -> Element:
    """Horizontal bars, each below its label. `limit` is drawn as a dotted line."""
    row_px, top = 42, 6
    plot = Plot(0, top, width - 12, top + row_px * len(rows))
    svg = drawing(name, titles.title, titles.description, width, plot.bottom + 24)
    longest = max([sum(part.value for part in row.parts) for row in rows] + [limit or 0])
    ticks = linear_ticks(longest, 4 if width < 400 else 6)
    x = linear(0, ticks[-1], plot.left + 2, plot.right)
    x_axis(svg, plot, x, ticks[1:-1], "")
    write(svg, plot.right, plot.bottom + 17, f"{number(ticks[-1])} {titles.x}", "tick", "end")
    for index, row in enumerate(rows):
        y = plot.top + index * row_px
        room = plot.right - text_px(row.note) - 12
        write(svg, plot.left + 2, y + 13, shortened(row.label, room), "label")
        write(svg, plot.right, y + 13, row.note, "value", "end")
        start = 0.0
        for part in row.parts:
            from_x, to_x = x(start), x(start + part.value)
            bar = add(svg, "rect", x=from_x, y=float(y + 19), width=to_x - from_x, height=15, class_=part.class_)
            tip(bar, f"{row.label}, {part.name}: {number(part.value)}")
            start += part.value
    if limit is not None:
        add(svg, "line", x1=x(limit), x2=x(limit), y1=plot.top, y2=plot.bottom, class_="reference")
    return svg


def histograms(name: str, titles: Titles, panels: Sequence[Distribution], width: int) -> Element:
    """One panel below another. Each has its own axis, from the smallest sample to just above the 99th percentile."""
    panel_px, bar_px, bins = 136, 60, 36 if width > 400 else 24
    svg = drawing(name, titles.title, titles.description, width, panel_px * len(panels) + 4)
    for index, one in enumerate(panels):
        top = panel_px * index
        plot = Plot(2, top + 42, width - 12, top + 42 + bar_px)
        low = min(one.samples)
        high = max(low + 1.08 * (float(np.percentile(one.samples, 99)) - low), low * 1.01)
        counts, edges = np.histogram([sample for sample in one.samples if sample <= high], bins, (low, high))
        beyond = len(one.samples) - int(counts.sum())
        x = linear(low, high, plot.left, plot.right)
        y = linear(0, float(counts.max()), 0, bar_px)
        note = f"longest {number(max(one.samples))} ms" if beyond else ""
        write(svg, 2, top + 14, shortened(one.label, plot.right - text_px(note) - 12), "label")
        write(svg, plot.right, top + 14, note, "tick", "end")
        wide = x(edges[1]) - x(edges[0]) - 1
        boxes = [f"M{x(start) + 0.5:.1f} {plot.bottom:g}v-{y(float(count)):.1f}h{wide:.1f}V{plot.bottom:g}z"
                 for count, start in zip(counts, edges, strict=False) if count]  # fmt: skip
        add(svg, "path", d="".join(boxes), class_=f"bin {one.class_}")
        x_axis(svg, plot, x, _between(low, high, 4 if width < 400 else 6), "")
        _quantiles(svg, plot, x, one.quantiles, high)
    return svg


def _quantiles(svg: Element, plot: Plot, x: Scale, quantiles: Sequence[tuple[str, float]], high: float) -> None:
    """Lines with names above. A name that would cover the one before moves right, and is left out at the edge."""
    free_from = 0.0
    for title, value in quantiles:
        at = x(min(value, high))
        line = add(svg, "line", x1=at, x2=at, y1=plot.top - 4, y2=plot.bottom, class_="quantile")
        tip(line, f"{title} {number(value)} ms")
        half = text_px(title) / 2
        place = min(max(at, free_from + half), plot.right - half)
        if place - half >= free_from:
            write(svg, place, plot.top - 7, title, "tick", "middle")
            free_from = place + half + 4


def _between(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most` of them."""
    steps = linear_ticks(high - low, most)
    step = steps[1] - steps[0]
    first = int(np.ceil(low / step))
    return [step * count for count in range(first, int(np.floor(high / step)) + 1)]


def _value_scale(values: Sequence[float], plot: Plot) -> tuple[Scale, list[float]]:
    """(scale, ticks): linear from zero, or logarithmic for a span above LOG_SPAN: small values would lie on zero."""
    if max(values) / min(values) > LOG_SPAN:
        ticks = log_ticks(min(values) * 0.95, max(values) * 1.05)
        return logarithmic(ticks[0], ticks[-1], plot.bottom, plot.top), ticks
    ticks = linear_ticks(max(values) * 1.05)
    return linear(0, ticks[-1], plot.bottom, plot.top), ticks
