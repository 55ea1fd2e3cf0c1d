"""A front as one SVG file: entropy against decode time or memory, with the names of models that exist."""

import itertools
import textwrap
from io import StringIO
from pathlib import Path
from typing import Any

from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, options_line
from merino_edge.design.design_file import Design
from merino_edge.design.pareto import Front, Mark
from merino_edge.prediction.intervals import percent
from merino_edge.prediction.shape import lengths_words
from merino_edge.report.tables import number
from merino_runtime.errors import MerinoError

SIZE_PX = 800, 600
FOOTNOTE_COLUMNS = 150  # characters
# Okabe and Ito's blue and vermilion, which people with any common color blindness distinguish.
BLUE, ORANGE, GRAY = "#0072b2", "#c04d00", "#5c6166"
MARKERS = "Ds^v*P"  # of existing models
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "front", "text.parse_math": False, "font.size": 12, "axes.grid": True,
    "grid.color": "#ecece8", "axes.spines.top": False, "axes.spines.right": False,
    "legend.framealpha": 1, "legend.edgecolor": "white",
    "figure.constrained_layout.h_pad": 0.14, "figure.constrained_layout.w_pad": 0.14,
}  # fmt: skip


def check_plot(path: Path) -> None:
    """Raise MerinoError if `path` is not named as an SVG file."""
    if path.suffix.lower() != ".svg":
        raise MerinoError(
            f"--plot {path} is not allowed: the front is drawn as SVG only. Choose a name that ends in .svg, such as"
            f" --plot {path.with_suffix('.svg').name if path.name else 'front.svg'}"
        )


def front_svg(front: Front) -> str:
    """Return the whole file, on white."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = BUDGETS_BY_NAME[front.against]
    where = f" on {front.backend}" if front.backend != "onnxruntime" else ""
    title = f"{front.device_name}{where}: the highest score at each {axis.title} limit"
    values = [(taken(front, design), design.entropy / 1e6) for design in front.points]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE_PX[0] / 72, SIZE_PX[1] / 72), dpi=72, layout="constrained")
        axes = figure.subplots()
        # 1. The front, the models and the board's budget.
        axes.plot(*zip(*values, strict=True), "o-", color=BLUE, label="best of all decoders of the space at each limit")
        for marker, model in zip(itertools.cycle(MARKERS), front.models, strict=False):
            point = taken(front, model), model.entropy / 1e6
            axes.plot(*point, marker, color=ORANGE, label=model.name)
        axes.axvline(front.default_limit, color=GRAY, linestyle="--", linewidth=1.2,
                     label=f"the board's default budget, {number(front.default_limit)} {axis.unit}")  # fmt: skip
        axes.set(xscale="log", ylim=(0, None), xlabel=f"{axis.label}, {axis.unit} (log scale)",
                 ylabel="effective weights, millions")  # fmt: skip
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper left")
        # 2. The title above, and below what the drawing shows.
        axes.set_title(title, loc="left", fontsize=15, pad=14)
        figure.supxlabel("\n".join(footnote(front)), x=0.01, ha="left", fontsize=10, color=GRAY)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Title": title, "Description": described(front), "Date": None})
    return out.getvalue().replace("pt\"", "px\"", 2)  # of width and height: browsers show px as they are


def taken(front: Front, shown: Design | Mark) -> float:
    """Return the value that is compared with a limit: the upper bound if there is an interval."""
    return amount(BUDGETS_BY_NAME[front.against], shown.predicted)


def described(front: Front) -> str:
    """Describe the front for screen readers."""
    def coordinates(shown: Design | Mark) -> str:
        unit = BUDGETS_BY_NAME[front.against].unit
        return f"{number(taken(front, shown))} {unit}, {number(shown.entropy / 1e6)} M effective weights"

    models = "; ".join(f"{model.name}: {coordinates(model)}" for model in front.models)
    ends = f"The front from {coordinates(front.points[0])} to {coordinates(front.points[-1])}."
    return f"{ends} Existing models: {models}." if models else ends


def footnote(front: Front) -> list[str]:
    """Return lines of text: what the drawing shows, and what the score means."""
    limits = options_line(front.budget)
    within = f", within {limits}" if limits else ""
    first, considered = front.points[0].predicted, front.considered
    vocabs, caches = ", ".join(map(str, considered.vocab)), ", ".join(kv or "float" for kv in considered.kv)
    ends = ""
    if first.confidence and first.interval(front.against):
        ends = f" Latencies are upper bounds of {percent(first.confidence)} prediction intervals."
    paragraphs = (
        f"Blue: vocabulary {vocabs}; {', '.join(considered.precision)}; a KV cache of {caches},"
        f" {lengths_words(front.context, front.prompt, None)}{within}; predicted"
        f" from {first.provenance} coefficients.{ends} The line ends at the largest decoder of the search space or at"
        " the board's free memory. Orange: existing models, by the same score and cost model.",
        "The score is the number of effective weights: it counts shape, vocabulary and formats by laws that were"
        " measured on published decoders: twice the score is 4 % less loss after equal training. It ignores training.",
    )
    return [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, FOOTNOTE_COLUMNS)]
