"""Which charts a report has and which values each shows. How a kind of chart is drawn is `charts`'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from merino_edge.records.schema import Record
from merino_edge.report.charts import (
    Bar,
    Distribution,
    Line,
    Part,
    Point,
    Titles,
    bars,
    histograms,
    lines,
    scatter,
)
from merino_edge.report.knowledge import draw_front, front_points, knowing
from merino_edge.report.series import REFERENCE, Series, engines_of
from merino_edge.report.summary import Prediction, Summary
from merino_edge.report.svg import as_markup, number

WIDTHS = {"wide": 540, "narrow": 304}  # px: each page holds both drawings and shows the one that fits
MAX_LINES, MAX_PANELS = 10, 6  # in one chart; the table has the others
SLICES = 8  # consecutive parts of a decode row's steps; each is drawn as its median
MIN_SPAN = 0.1  # of the longest line's extent in x; a shorter line shows no trend and is left out


@dataclass(frozen=True)
class Chart:
    """drawings: SVG markup without unescaped text, one for each of WIDTHS. provenance: where its values come from."""

    name: str
    title: str
    note: str
    provenance: str
    drawings: tuple[str, ...]


def charts_of(summary: Summary) -> list[Chart]:
    """The charts that the records have values for, in the order of the page."""
    colors = {name: f"e{index}" for index, name in enumerate(engines_of(summary.series))}
    made = (
        speed_against_size(summary, colors), decode_against_cache(summary, colors),
        prefill_against_prompt(summary, colors), latency(summary, colors), memory(summary, colors),
        bandwidth(summary, colors), accuracy(summary, colors), *predicted_against_measured(summary, colors),
    )  # fmt: skip
    return [chart for chart in made if chart is not None]


def speed_against_size(summary: Summary, colors: dict[str, str]) -> Chart | None:
    chosen = [(one, row) for one in summary.series if (row := one.decode) and row.tok_s and one.params]
    points = [
        Point((one.params or 0) / 1e6, row.tok_s or 0, _label(one, row),
              f"{one.label}, {one.engine}: {number(row.tok_s or 0)} tokens/s ({row.test})", one.precision,
              _class(one, colors))
        for one, row in chosen
    ]  # fmt: skip
    known = [point for point, (one, _) in zip(points, chosen, strict=True) if one.is_reference]
    reference = max(known, key=lambda point: point.y) if known else None
    lead = f"Left of and above the dotted lines: smaller and faster than {REFERENCE} at its fastest. " * bool(known)
    listed = "; ".join(point.tip for point in points)
    titles = Titles("Decode speed against size", listed, "parameters, M (log scale)", "tokens/s (log scale)")
    note = f"{lead}Each model's decode row with the least cached."
    return _chart("size", titles, note, summary.measured_on, scatter, points, reference)


def decode_against_cache(summary: Summary, colors: dict[str, str]) -> Chart | None:
    curves = [(one, cache_points(one)) for one in summary.series]
    spans = [points[-1][0] - points[0][0] if points else 0 for _, points in curves]
    drawn = [
        Line(points, one.label, one.precision, _class(one, colors))
        for (one, points), span in zip(curves, spans, strict=True) if span and span >= MIN_SPAN * max(spans)
    ]  # fmt: skip
    titles = Titles("Decode time as the cache fills", _ends(drawn), "tokens in the cache", "ms per token")
    note = f"Medians: of each depth, or of slices of consecutive steps where there is one depth.{_cut(drawn)}"
    return _chart("cache", titles, note, summary.measured_on, lines, drawn[:MAX_LINES])


def prefill_against_prompt(summary: Summary, colors: dict[str, str]) -> Chart | None:
    """One line for each bundle that was measured at two prompt lengths or more."""
    drawn = []
    for one in summary.series:
        rows = [row for row in one.records if not row.decodes and not row.cached and row.ms_p50]
        points = tuple(sorted({row.tokens: row.ms_p50 or 0 for row in rows}.items()))
        if len(points) > 1:
            drawn.append(Line(points, one.label, one.precision, _class(one, colors)))
    titles = Titles("Prefill time against the prompt's length", _ends(drawn), "tokens of the prompt", "ms")
    note = f"Medians over repetitions.{_cut(drawn)}"
    return _chart("prompt", titles, note, summary.measured_on, lines, drawn[:MAX_LINES])


def latency(summary: Summary, colors: dict[str, str]) -> Chart | None:
    panels: list[Distribution] = []
    for one in summary.series:
        row = one.decode
        if row and row.samples_ms and len(row.samples_ms) > 1:
            ranks = [(f"p{rank}", float(np.percentile(row.samples_ms, rank))) for rank in (50, 90, 99)]
            panels.append(Distribution(row.samples_ms, _label(one, row), _class(one, colors), tuple(ranks)))
    description = "; ".join(f"{one.label}: median {number(one.quantiles[0][1])} ms" for one in panels)
    titles = Titles("Time between two tokens", description)
    cut = _cut(panels, MAX_PANELS)
    note = f"ms per decode step, each axis its own; lines at the 50th, 90th and 99th percentile.{cut}"
    return _chart("latency", titles, note, summary.measured_on, histograms, panels[:MAX_PANELS])


def memory(summary: Summary, colors: dict[str, str]) -> Chart | None:
    rows = []
    for parts in summary.memory:
        color = _class(parts.series, colors)
        split = [Part(parts.weights_mb, "weights", f"bar {color}")]
        if parts.kv_mb is not None:
            split.append(Part(parts.kv_mb, "KV cache at full context", f"bar half {color}"))
        rest = "rest" if parts.kv_mb is not None else "rest, KV cache included"
        split.append(Part(parts.rest_mb, rest, "bar rest"))
        rows.append(Bar(parts.series.label, f"{number(sum(part.value for part in split))} MB", tuple(split)))
    titles = Titles("Peak memory", "; ".join(f"{row.label}: {row.note}" for row in rows), "MB")
    split_out = any(parts.kv_mb is not None for parts in summary.memory)
    middle = "pale: KV cache at full context (from the geometry); " if split_out else ""
    note = f"Strong: weights; {middle}gray: the rest (Python, engine, activations{'' if split_out else ', KV cache'})."
    return _chart("memory", titles, note, summary.measured_on, bars, rows, None)


def bandwidth(summary: Summary, colors: dict[str, str]) -> Chart | None:
    chosen = [(one, row) for one in summary.series if (row := one.decode) and row.mbu]
    rows = [
        Bar(_label(one, row), f"{100 * (row.mbu or 0):.0f} % of {number(row.read_gb_s or 0)} GB/s",
            (Part(100 * (row.mbu or 0), row.test, f"bar {_class(one, colors)}"),))
        for one, row in chosen
    ]  # fmt: skip
    titles = Titles("Memory-bandwidth utilization (MBU)", "; ".join(f"{row.label}: {row.note}" for row in rows), "%")
    note = "Bytes of weights and KV that a decode step must read, over its time, over the probed read bandwidth."
    if any((row.mbu or 0) > 1 for _, row in chosen):
        note += " Above 100 %: the weights stayed in the CPU's cache, or memory was slower while it was probed."
    return _chart("bandwidth", titles, note, summary.measured_on, bars, rows, 100)


def accuracy(summary: Summary, colors: dict[str, str]) -> Chart | None:
    scored, tasks = knowing(summary.evaluations, summary.series)
    points = front_points(scored, lambda one: _class(one, colors))
    listed = "; ".join(point.tip for point in points)
    titles = Titles("Accuracy against decode time", listed, "ms per token", "accuracy, %")
    note = f"Mean over {', '.join(tasks)}. The line joins what no other bundle beats in both."
    return _chart("accuracy", titles, note, summary.measured_on, draw_front, points)


def predicted_against_measured(summary: Summary, colors: dict[str, str]) -> list[Chart | None]:
    by_what = {"decode": "decode, per token", "prefill": "prefill", "memory": "peak memory"}
    by_title = {title: [one for one in summary.predictions if one.what == what] for what, title in by_what.items()}
    return [_predicted(summary.predicted_for, title, chosen, colors) for title, chosen in by_title.items() if chosen]


def cache_points(series: Series) -> tuple[tuple[float, float], ...]:
    """(tokens in the cache, median ms) of each decode row; of a single row, of SLICES parts of its steps."""
    medians: dict[float, float] = {}
    rows = [row for row in series.records if row.decodes and row.rounds]
    for row in rows:
        steps = min(len(one) for one in row.rounds)
        if steps:
            edges = np.linspace(0, steps, (min(SLICES, steps) if len(rows) == 1 else 1) + 1).astype(int)
            for start, end in zip(edges, edges[1:], strict=False):
                samples = [sample for one in row.rounds for sample in one[start:end]]
                medians[row.cached + (int(start) + int(end) - 1) / 2] = median(samples)
    return tuple(sorted(medians.items()))


def _predicted(board: str, title: str, chosen: Sequence[Prediction], colors: dict[str, str]) -> Chart | None:
    rows = []
    for one in chosen:
        color = _class(one.series, colors).split()[0]
        rows.append(Bar(f"{one.series.label}, predicted for {board}", f"{number(one.predicted)} {one.unit}",
                        (Part(one.predicted, "predicted", f"bar hollow {color}"),)))  # fmt: skip
        verdict = f", {one.verdict}" if one.verdict else ""
        error = f" ({one.measured / one.predicted - 1:+.0%}{verdict})" if one.here else ""
        rows.append(Bar(f"{one.series.label}, measured on {one.series.board}", f"{number(one.measured)} {one.unit}"
                        f"{error}", (Part(one.measured, "measured", f"bar {color}"),)))  # fmt: skip
    titles = Titles(
        f"Predicted and measured: {title}", "; ".join(f"{row.label}: {row.note}" for row in rows), chosen[0].unit
    )
    elsewhere = "" if all(one.here for one in chosen) else " Measured on another machine than predicted for."
    provenance = f"outlined: predicted from {chosen[0].provenance} coefficients; filled: measured"
    note = f"Predicted by the cost model of the design search. Measured times are medians.{elsewhere}"
    return _chart(f"predicted-{chosen[0].what}", titles, note, provenance, bars, rows, None)


def _chart(
    name: str, titles: Titles, note: str, provenance: str, draw: Callable[..., Element], values: Sequence[Any],
    *limits: Any,
) -> Chart | None:  # fmt: skip
    """`draw` gets a name, the titles, the values, the limits and a width. None where there are no values."""
    drawings = (draw(f"{name}-{kind}", titles, values, *limits, width) for kind, width in WIDTHS.items())
    return Chart(name, titles.title, note, provenance, tuple(map(as_markup, drawings))) if values else None


def _class(series: Series, colors: dict[str, str]) -> str:
    return colors[series.engine_name] + (" hollow" if series.is_reference else "")


def _ends(drawn: Sequence[Line]) -> str:
    return "; ".join(f"{one.label}: {number(one.points[0][1])} ms at {number(one.points[0][0])} tokens, "
                     f"{number(one.points[-1][1])} ms at {number(one.points[-1][0])}" for one in drawn)  # fmt: skip


def _cut(drawn: Sequence[object], most: int = MAX_LINES) -> str:
    return f" The first {most} of {len(drawn)}; the table has all." if len(drawn) > most else ""


def _label(series: Series, row: Record) -> str:
    """The series' label, and the flags of a disturbed row."""
    return " ".join([series.label, *(f"({flag})" for flag in row.flags)])
