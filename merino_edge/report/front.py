"""A front as one SVG file: entropy against decode time or memory, with the names of models that exist.

The file carries its own style, in colors that need no CSS variables, so that viewers other than browsers show it too.
"""

import textwrap
from pathlib import Path
from xml.etree.ElementTree import Element

from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, options_line
from merino_edge.design.design_file import Design
from merino_edge.design.pareto import Front
from merino_edge.design.pareto import Mark as ExistingModel
from merino_edge.prediction.intervals import percent
from merino_edge.prediction.shape import lengths_words
from merino_edge.report import labels
from merino_edge.report.labels import Box, Mark
from merino_edge.report.svg import (
    Plot,
    Scale,
    add,
    as_markup,
    drawing,
    linear,
    linear_ticks,
    log_ticks,
    logarithmic,
    marker,
    number,
    text_px,
    tip,
    write,
    x_axis,
    y_axis,
)
from merino_edge.storage.atomic import write_text
from merino_runtime.errors import MerinoError

WIDTH, HEIGHT = 800, 560  # px; the footnote stands below
FOOTNOTE_LINE_PX = 17
FOOTNOTE_COLUMNS = 122  # characters
# Okabe and Ito's blue and vermilion, which people with any common color blindness distinguish.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif; fill: #1b1d1f; }
text.heading { font-size: 18px; font-weight: 600; }
text.tick, text.axis, text.footnote, text.limit { fill: #5c6166; }
text.footnote { font-size: 12px; }
text.label { fill: #a34700; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; }
.paper { fill: #ffffff; }
.grid { stroke: #ecece8; }
.base { stroke: #5c6166; }
.limit-line { stroke: #5c6166; stroke-width: 1.2; stroke-dasharray: 6 4; }
.line { fill: none; stroke: #0072b2; stroke-width: 2; stroke-linejoin: round; }
.design { fill: #0072b2; stroke: #ffffff; }
.model { fill: #d55e00; stroke: #ffffff; }
.leader { stroke: #d55e00; stroke-width: 0.8; }
"""


def save_front(front: Front, path: Path) -> None:
    """Write the drawing. Raises MerinoError for a suffix other than .svg, or where the file cannot be written."""
    check_plot(path)
    write_text(path, front_svg(front))


def check_plot(path: Path) -> None:
    """Raise MerinoError if `path` is not named as an SVG file."""
    if path.suffix.lower() != ".svg":
        raise MerinoError(
            f"--plot {path} is not allowed: the front is drawn as SVG only. Choose a name that ends in .svg, such as"
            f" --plot {path.with_suffix('.svg').name if path.name else 'front.svg'}"
        )


def front_svg(front: Front) -> str:
    """The whole file."""
    axis = BUDGETS_BY_NAME[front.against]
    where = f" on {front.backend}" if front.backend != "onnxruntime" else ""
    heading = f"{front.device_name}{where}: the highest score at each {axis.title} limit"
    notes = footnote(front)
    height = HEIGHT + FOOTNOTE_LINE_PX * len(notes)
    svg = drawing("front", heading, described(front), WIDTH, height)
    for key, value in (("xmlns", "http://www.w3.org/2000/svg"), ("width", f"{WIDTH}"), ("height", f"{height}")):
        svg.set(key, value)
    add(svg, "style").text = STYLE
    add(svg, "rect", width=WIDTH, height=height, class_="paper")
    write(svg, 16, 32, heading, "heading")
    plot = Plot(62, 88, WIDTH - 24, HEIGHT - 62)
    x, y = axes(svg, front, plot, f"{axis.label}, {axis.unit} (log scale)")
    points = [(x(taken(front, each)), y(each.entropy)) for each in front.points]
    marks = [Mark(x(taken(front, each)), y(each.entropy), each.name) for each in front.models]
    limit = draw_limit(svg, front, plot, x(front.default_limit))
    add(svg, "polyline", points=" ".join(f"{at:.1f},{up:.1f}" for at, up in points), class_="line")
    for (at, up), design in zip(points, front.points, strict=True):
        tip(marker(svg, at, up, "fp32", "design", 4), f"design: {coordinates(front, design)}")
    for mark, model in zip(marks, front.models, strict=True):
        tip(marker(svg, mark.x, mark.y, "fp16", "model"), f"{model.name}: {coordinates(front, model)}")
    limit_line = labels.along([(x(front.default_limit), plot.top), (x(front.default_limit), plot.bottom)])
    texts = [limit, *(labels.around(at, up, 5) for at, up in points)]
    labels.draw(svg, labels.beside(plot, marks, [*labels.along(points), *limit_line], texts))
    for index, line in enumerate(notes):
        write(svg, 16, HEIGHT + FOOTNOTE_LINE_PX * index, line, "footnote")
    return as_markup(svg) + "\n"


def axes(svg: Element, front: Front, plot: Plot, title: str) -> tuple[Scale, Scale]:
    """(x, y): x logarithmic over points, models and the default budget; y linear from zero, in millions."""
    shown: tuple[Design | ExistingModel, ...] = (*front.points, *front.models)
    values = [front.default_limit, *(taken(front, each) for each in shown)]
    x_ticks = log_ticks(min(values) / 1.05, max(values) * 1.05)
    y_ticks = linear_ticks(max(each.entropy for each in shown) / 1e6 * 1.05)
    x = logarithmic(x_ticks[0], x_ticks[-1], plot.left, plot.right)
    y = linear(0, y_ticks[-1], plot.bottom, plot.top)
    y_axis(svg, plot, y, y_ticks, "")
    x_axis(svg, plot, x, x_ticks, title)
    write(svg, 16, plot.top - 18, "effective weights, millions", "axis")
    return x, lambda score: y(score / 1e6)


def draw_limit(svg: Element, front: Front, plot: Plot, at: float) -> Box:
    """The board's default budget as a dashed line; the box of its label, which stands on the side with more room."""
    unit = BUDGETS_BY_NAME[front.against].unit
    text = f"the board's default budget, {number(front.default_limit)} {unit}"
    wide = text_px(text)
    left = at - 8 - wide if at - plot.left > plot.right - at else at + 8
    add(svg, "line", x1=at, x2=at, y1=plot.top, y2=plot.bottom, class_="limit-line")
    write(svg, left, plot.top + 13, text, "limit")
    return Box(left, plot.top, left + wide, plot.top + 18)


def taken(front: Front, shown: Design | ExistingModel) -> float:
    """The value that is compared with a limit: the upper bound where there is an interval."""
    return amount(BUDGETS_BY_NAME[front.against], shown.predicted)


def coordinates(front: Front, shown: Design | ExistingModel) -> str:
    """The values on both axes with their units."""
    unit = BUDGETS_BY_NAME[front.against].unit
    return f"{number(taken(front, shown))} {unit}, {number(shown.entropy / 1e6)} M effective weights"


def described(front: Front) -> str:
    """For screen readers."""
    models = "; ".join(f"{each.name}: {coordinates(front, each)}" for each in front.models)
    first, last = front.points[0], front.points[-1]
    ends = f"The front from {coordinates(front, first)} to {coordinates(front, last)}."
    return f"{ends} Existing models: {models}." if models else ends


def opened(front: Front) -> str:
    """The vocabularies and formats that the search chose from."""
    considered = front.considered
    caches = ", ".join(kv or "float" for kv in considered.kv)
    vocabs = ", ".join(f"{vocab:,}" for vocab in considered.vocab)
    return f"vocabulary {vocabs}; {', '.join(considered.precision)}; a KV cache of {caches}"


def footnote(front: Front) -> list[str]:
    """Lines of text: what the drawing shows, and what the score means."""
    limits = options_line(front.budget)
    within = f", within {limits}" if limits else ""
    first = front.points[0].predicted
    ends = ""
    if first.confidence and first.interval(front.against):
        ends = f" Latencies are upper bounds of {percent(first.confidence)} prediction intervals."
    paragraphs = (
        f"Blue: the best of all decoders of the space at each limit, {opened(front)},"
        f" {lengths_words(front.context, front.prompt, None)}{within}; predicted from"
        f" {first.provenance} coefficients.{ends} It ends at the largest decoder of the search space or at the board's"
        " free memory.",
        f"Orange: existing models in {front.precision} by the same score and cost model.",
        "The score is the number of weights of a float32 decoder of the best shape and vocabulary with the same"
        " predicted loss, by a law measured on published decoders: twice the score is 4 % less loss.",
    )
    return [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, FOOTNOTE_COLUMNS)]
