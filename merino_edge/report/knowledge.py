"""Evaluations in a report: a table of scores, and accuracy against the decode time of the same bundles."""

from collections.abc import Callable, Sequence
from statistics import mean
from xml.etree.ElementTree import Element

from merino_bench.harness.record import format_words
from merino_edge.records.evaluation import Evaluation, Metric
from merino_edge.report import labels
from merino_edge.report.charts import Point, Titles
from merino_edge.report.labels import Mark
from merino_edge.report.series import Series
from merino_edge.report.svg import Plot, add, drawing, linear, linear_ticks, marker, number, tip, x_axis, y_axis
from merino_edge.report.tables import Cell, DataTable, text_cell

COLUMNS = (
    ("model", False), ("format", False), ("engine", False), ("task", False), ("metric", False), ("value", True),
    ("uncertainty", False), ("items", True),
)  # fmt: skip


def scores_table(evaluations: Sequence[Evaluation]) -> DataTable:
    rows = tuple(
        (
            *map(text_cell, (each.model, format_words(each.precision, each.dialect, each.kv), each.engine, each.task)),
            text_cell(name), Cell(f"{metric.value:.4g}", metric.value), text_cell(uncertainty(metric)),
            Cell(f"{each.items:,} of {each.of_items:,}", each.items),
        )
        for each in evaluations for name, metric in each.metrics.items()
    )  # fmt: skip
    caption = "Scores of lm-evaluation-harness; bundles ran in the board's runtime. Uncertainty: standard error over"
    return DataTable("scores", f"{caption} items, or 95 % interval over documents.", COLUMNS, rows)



def uncertainty(metric: Metric) -> str:
    if metric.interval is not None:
        return f"{metric.interval[0]:.4g} to {metric.interval[1]:.4g}"
    return "–" if metric.stderr is None else f"± {metric.stderr:.2g}"


def knowing(
    evaluations: Sequence[Evaluation], series: Sequence[Series]
) -> tuple[list[tuple[Series, float]], list[str]]:
    """(each series with a decode row and its mean accuracy, the tasks of that mean). The tasks are those on which all
    such bundles were scored."""
    by_bundle = {one.records[0].bundle_sha256: one for one in series if one.decode and one.decode.ms_p50}
    scores: dict[str, dict[str, float]] = {}
    for each in evaluations:
        name, metric = each.main
        if each.sha256 in by_bundle and name in ("acc", "acc_norm"):
            scores.setdefault(each.sha256, {})[each.task] = metric.value
    tasks = sorted(set.intersection(*map(set, scores.values()))) if scores else []
    scored = [(by_bundle[bundle], mean(of[task] for task in tasks)) for bundle, of in scores.items()] if tasks else []
    return scored, tasks


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both, the fastest first."""
    best: list[Point] = []
    for each in sorted(points, key=lambda point: (point.x, -point.y)):
        if not best or each.y > best[-1].y:
            best.append(each)
    return best


def draw_front(name: str, titles: Titles, points: Sequence[Point], width: int) -> Element:
    """Both axes are linear; x begins at 0. The line joins the points of the front."""
    height = 340
    svg = drawing(name, titles.title, titles.description, width, height)
    plot = Plot(44, 34, width - 10, height - 44)
    x_ticks = linear_ticks(max(one.x for one in points) * 1.1, 4 if width < 400 else 6)
    y_ticks = linear_ticks(max(one.y for one in points) * 1.05)
    x, y = linear(0, x_ticks[-1], plot.left, plot.right), linear(0, y_ticks[-1], plot.bottom, plot.top)
    y_axis(svg, plot, y, y_ticks, titles.y)
    x_axis(svg, plot, x, x_ticks, titles.x)
    best = front(points)
    if len(best) > 1:
        add(svg, "polyline", points=" ".join(f"{x(one.x):.1f},{y(one.y):.1f}" for one in best), class_="reference")
    for one in points:
        tip(marker(svg, x(one.x), y(one.y), one.precision, f"mark {one.class_}"), one.tip)
    labels.draw(svg, labels.beside(plot, [Mark(x(one.x), y(one.y), one.label) for one in points]))
    return svg


def front_points(scored: Sequence[tuple[Series, float]], class_of: Callable[[Series], str]) -> list[Point]:
    return [
        Point(
            row.ms_p50 or 0, 100 * accuracy, one.label,
            f"{one.label}: {100 * accuracy:.1f} % at {number(row.ms_p50 or 0)} ms", one.precision, class_of(one),
        )
        for one, accuracy in scored if (row := one.decode)
    ]  # fmt: skip
