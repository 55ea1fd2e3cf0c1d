"""The parts of a chart: SVG elements, scales and axes. Colors are classes that a style sheet sets.

Drawings are element trees, not joined strings, so text from records is always escaped.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

TEXT_PX = 12
CHARACTER_PX = 7.0  # width of a character at TEXT_PX, the largest average among system fonts
SHAPES = (  # by the beginning of a format's name, this project's or another engine's
    ("circle", ("fp32", "f32")), ("square", ("int8", "q8")), ("triangle", ("int4", "q4")), ("diamond", ("fp16", "f16")),
)  # fmt: skip
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Plot:
    """The area between the axes, in px of the drawing: y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float


def drawing(name: str, title: str, description: str, width: int, height: float) -> Element:
    """An empty image with a title and a description for screen readers. name: unique on the page, for their ids."""
    svg = Element("svg", {
        "viewBox": f"0 0 {width} {height:g}", "role": "img", "aria-labelledby": f"{name}-title {name}-description",
        "class": name.rsplit("-", 1)[-1],
    })  # fmt: skip
    add(svg, "title", id=f"{name}-title").text = title
    add(svg, "desc", id=f"{name}-description").text = description
    return svg


def add(parent: Element, tag: str, **attributes: object) -> Element:
    """Append an element. `class_` becomes class, underscores become hyphens, floats are rounded to 0.1 px."""
    named = {
        key.rstrip("_").replace("_", "-"): f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else f"{value}"
        for key, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, named)


def write(parent: Element, x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> Element:
    element = add(parent, "text", x=float(x), y=float(y), class_=class_, text_anchor=anchor)
    element.text = text
    return element


def tip(element: Element, text: str) -> None:
    """The text shown while the pointer rests on the element."""
    add(element, "title").text = text


def as_markup(svg: Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode")


def linear(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / ((high - low) or 1) * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    line = linear(math.log(low), math.log(high), start, end)
    return lambda value: line(math.log(value))


def linear_ticks(high: float, most: int = 5) -> list[float]:
    """Round numbers from zero, at most `most` + 2 of them; the last one is at least `high`."""
    step = 10 ** math.floor(math.log10(high / most))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor * most >= high)
    return [step * count for count in range(math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, from the last one at or below `low` to the first one at or above `high`."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    first = max(index for index, step in enumerate(steps) if step <= low * 1.0001)
    last = min(index for index, step in enumerate(steps) if step >= high * 0.9999)
    return steps[first : last + 1]


def thinned(ticks: Sequence[float], most: int) -> list[float]:
    """Every n-th tick, with the smallest n that leaves at most `most`."""
    return list(ticks[:: math.ceil(len(ticks) / most)])


def y_axis(svg: Element, plot: Plot, scale: Scale, ticks: Sequence[float], title: str) -> None:
    for tick in ticks:
        y = scale(tick)
        add(svg, "line", x1=plot.left, x2=plot.right, y1=y, y2=y, class_="grid")
        write(svg, plot.left - 6, y + 4, number(tick), "tick", "end")
    if title:
        write(svg, 0, plot.top - 12, title, "axis")


def x_axis(svg: Element, plot: Plot, scale: Scale, ticks: Sequence[float], title: str) -> None:
    add(svg, "line", x1=plot.left, x2=plot.right, y1=plot.bottom, y2=plot.bottom, class_="base")
    for tick in ticks:
        x = scale(tick)
        add(svg, "line", x1=x, x2=x, y1=plot.bottom, y2=plot.bottom + 4, class_="base")
        write(svg, x, plot.bottom + 17, number(tick), "tick", "middle")
    if title:
        write(svg, plot.right, plot.bottom + 34, title, "axis", "end")


def marker(svg: Element, x: float, y: float, precision: str, class_: str, size: float = 5) -> Element:
    """A mark whose shape shows the format, so that formats differ without color."""
    shape = shape_of(precision)
    if shape == "circle":
        return add(svg, "circle", cx=float(x), cy=float(y), r=size, class_=class_)
    if shape == "square":
        return add(svg, "rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_=class_)
    sides = {"triangle": 3, "diamond": 4}[shape]
    angles = [2 * math.pi * side / sides - math.pi / 2 for side in range(sides)]
    corners = [(x + 1.3 * size * math.cos(angle), y + 1.3 * size * math.sin(angle)) for angle in angles]
    return add(svg, "polygon", points=" ".join(f"{one:.1f},{other:.1f}" for one, other in corners), class_=class_)


def shape_of(precision: str) -> str:
    return next((shape for shape, names in SHAPES if precision.lower().startswith(names)), "circle")


def text_px(text: str) -> float:
    return CHARACTER_PX * len(text)


def shortened(text: str, px: float) -> str:
    """The text cut to `px`, with an ellipsis where characters were cut off."""
    most = max(2, int(px / CHARACTER_PX))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float) -> str:
    """Three significant digits, with commas between thousands."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
