"""The picture of a front: entropy against decode time or memory, with models that exist marked by name.

matplotlib is imported here only, and only when a picture is asked for (the extra `plot`).
"""

import os
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, options_line
from merino_edge.design.pareto import Front, Mark
from merino_runtime.errors import MerinoError

# Okabe and Ito's colours, which people with any common colour blindness tell apart.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"
SAME = 0.03  # of an axis: marks closer than this share one label


def save_front(front: Front, path: Path) -> None:
    """Write a PNG at 2x resolution. Raises MerinoError without matplotlib or where it cannot be written."""
    figure = draw(front)
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".png")
        os.close(handle)
        figure.savefig(beside, dpi=200, format="png", pil_kwargs={"optimize": True})
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:
        if beside and os.path.exists(beside):
            os.unlink(beside)
        raise MerinoError(f"cannot write {path}: {error.strerror or error}. Choose another --plot") from error


def require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MerinoError(
            "--plot needs matplotlib, which is not installed: `python -m pip install matplotlib` (the extra `plot`)"
        ) from error


def draw(front: Front) -> Any:
    """A matplotlib Figure; no window and no global state."""
    require_matplotlib()
    from matplotlib.figure import Figure

    axis = BUDGETS_BY_NAME[front.against]
    figure = Figure(figsize=(8, 5.4), facecolor="white")
    axes = figure.add_axes((0.085, 0.225, 0.885, 0.67))
    x = [amount(axis, point.predicted) for point in front.points]
    y = [point.entropy / 1e3 for point in front.points]
    axes.plot(x, y, "-o", color=BLUE, linewidth=2, markersize=5.5, zorder=3, clip_on=False)
    crosses = [(amount(axis, mark.predicted), mark.entropy / 1e3) for mark in front.models]
    axes.plot(*zip(*crosses, strict=True) if crosses else ((), ()), "D", color=ORANGE, markersize=6.5, zorder=4)
    scale(axes, [*x, front.default_limit, *(cross[0] for cross in crosses)], [*y, *(cross[1] for cross in crosses)])
    axes.axvline(front.default_limit, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    axes.axvspan(axes.get_xlim()[0], front.default_limit, color=GREY, alpha=0.07, linewidth=0, zorder=0)
    axes.annotate(
        f"the board's default budget, {front.default_limit:g} {axis.unit}",
        (front.default_limit, 1), xycoords=("data", "axes fraction"), xytext=(-5, -8), textcoords="offset points",
        ha="right", va="top", fontsize=9, color="#555555",
    )  # fmt: skip
    axes.set_xlabel(f"{axis.label} ({axis.unit})", fontsize=10.5, color=INK)
    axes.set_ylabel("entropy (thousand weighted nats)", fontsize=10.5, color=INK)
    title = f"{front.device_name}: most entropy for its {axis.title}"
    axes.set_title(title, loc="left", fontsize=13, color=INK, pad=12)
    figure.text(0.085, 0.018, footnote(front), fontsize=7.5, color="#555555", va="bottom", linespacing=1.35)
    name_marks(axes, front.models, crosses, list(zip(x, y, strict=True)), front.default_limit)
    return figure


def scale(axes: Any, x: Sequence[float], y: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5, a linear one from zero, and no more lines than needed."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(x) / 1.15, max(x) * 1.25
    ticks = [step * 10.0**power for power in range(-3, 7) for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(0, max(y) * 1.1)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, colors="#444444")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")


def name_marks(
    axes: Any, models: Sequence[Mark], at: list[tuple[float, float]], front: list[tuple[float, float]], budget: float
) -> None:
    """A name beside each mark, one for those that coincide, where it covers least of what is drawn already."""
    axes.figure.canvas.draw()
    to_pixels = axes.transData.transform
    width, height = axes.bbox.width, axes.bbox.height
    groups: list[tuple[list[str], Any]] = []
    for mark, pixel in zip(models, to_pixels(at) if at else [], strict=True):
        near = (group for group in groups if all(abs(group[1] - pixel) < (SAME * width, SAME * height)))
        group = next(near, None)
        if group:
            group[0].append(mark.name)
        else:
            groups.append(([mark.name], pixel))
    taken = boxes(to_pixels(line_points(front))) + boxes([pixel for _, pixel in groups])
    taken += [text.get_window_extent() for text in axes.texts]
    taken += boxes(to_pixels([(budget, share / 40 * axes.get_ylim()[1]) for share in range(41)]), size=4.0)
    for names, pixel in sorted(groups, key=lambda group: -group[1][0]):
        text = axes.annotate(
            ", ".join(names), axes.transData.inverted().transform(pixel), xytext=(0, 0),
            textcoords="offset points", fontsize=9, color=ORANGE,
        )  # fmt: skip
        best = min(PLACES, key=lambda place: (covered(put(text, place), taken, axes.bbox), PLACES.index(place)))
        taken.append(put(text, best).padded(2))


PLACES = (  # offset in points, then which side of the text touches it
    ((8, -3), "left", "top"), ((0, -9), "center", "top"), ((9, 0), "left", "center"), ((-8, 4), "right", "bottom"),
    ((-9, 0), "right", "center"), ((-8, -4), "right", "top"), ((8, 4), "left", "bottom"), ((0, 9), "center", "bottom"),
    ((-7, -6), "right", "top"), ((12, -14), "left", "top"), ((0, -22), "center", "top"),
)  # fmt: skip


def put(text: Any, place: tuple[tuple[float, float], str, str]) -> Any:
    """The text's box in pixels when it is set there."""
    offset, across, up = place
    text.set_position(offset)
    text.set_horizontalalignment(across)
    text.set_verticalalignment(up)
    return text.get_window_extent()


def covered(box: Any, taken: Sequence[Any], inside: Any) -> int:
    """How many things a box lies on; leaving the axes is worse than any of them."""
    outside = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
    return sum(box.overlaps(other) for other in taken) + 1000 * outside


def line_points(front: list[tuple[float, float]], between: int = 24) -> list[tuple[float, float]]:
    """The front's line as so many points that no text slips between them; straight on the logarithmic axis nearly."""
    found = []
    for (x0, y0), (x1, y1) in zip(front, front[1:], strict=False):
        found += [(x0 * (x1 / x0) ** (step / between), y0 + (y1 - y0) * step / between) for step in range(between + 1)]
    return found or front


def boxes(pixels: Any, size: float = 9.0) -> list[Any]:
    from matplotlib.transforms import Bbox

    return [Bbox.from_bounds(x - size / 2, y - size / 2, size, size) for x, y in pixels]


def footnote(front: Front, columns: int = 132) -> str:
    held = options_line(front.budget)
    provenance = front.points[0].predicted.provenance
    blocks = len(front.points[0].architecture.blocks)
    paragraphs = (
        f"Blue: the proved optimum at each limit, {front.precision}, vocabulary {front.vocab:,}, context"
        f" {front.context}, prompt {front.prompt}{', within ' + held if held else ''}. Predicted from {provenance}"
        " figures. The front ends at the largest decoder of the space, or with the board's free memory.",
        f"Orange: existing models by the same score and predictions; {blocks} blocks of equal depth, keys and values"
        " counted as wide as queries, a gated FFN as two matrices. The score takes weights as drawn at random: it does"
        " not know how well, or on what, a model was trained.",
    )
    return "\n".join(textwrap.fill(paragraph, columns) for paragraph in paragraphs)
