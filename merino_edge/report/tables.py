"""The words and tables of a report, the same for HTML and Markdown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from merino_bench.harness.record import format_words
from merino_bench.harness.render import LEFT, columns_of
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE, percent
from merino_edge.records.compare import Ratio
from merino_edge.records.evaluation import Evaluation
from merino_edge.report.series import PAPER, PAPER_PARAMS, PAPER_SPEED, REFERENCE, Series, SpeedRatio
from merino_edge.report.summary import Place, Summary


def headline(summary: Summary) -> str:
    best = summary.headline
    if best is not None:
        fewer = f" with {best.params_ratio:.1f}× fewer parameters" if (best.params_ratio or 0) > 1 else ""
        return f"{multiple(best.speed.value)} as fast as {REFERENCE}{fewer}"
    rows = [row for entry in summary.series if (row := entry.decode) and row.tok_s]
    if not rows and summary.evaluations:
        models = {(evaluation.sha256, evaluation.precision) for evaluation in summary.evaluations}
        tasks = {evaluation.task for evaluation in summary.evaluations}
        return f"{len(models)} model{'s' * (len(models) > 1)} scored on {len(tasks)} task{'s' * (len(tasks) > 1)}"
    if not rows:
        return "No decode row"
    fastest = max(rows, key=lambda row: row.tok_s or 0)
    return f"{fastest.bundle} decodes {number(fastest.tok_s or 0)} tokens per second"


def headline_details(summary: Summary) -> str:
    best = summary.headline
    if best is None:
        return f"These records hold no decode row of {REFERENCE} at an equal engine and format, so there is no ratio."
    model = best.model
    return (
        f"{model.bundle} ({(model.params or 0) / 1e6:,.1f} M parameters), decode {best.test}, {model.precision} "
        f"on {model.engine} on both sides; {weights_words(model, best.reference)}. "
        f"{ratio_words(best.speed)}, with the 95 % interval; {summary.measured_on}."
    )


def paper_words() -> str:
    return f"{PAPER_SPEED}× as fast with {PAPER_PARAMS}× fewer parameters: {PAPER}."


def weights_words(*series: Series) -> str:
    kinds = {entry.weights for entry in series}
    if kinds == {"real"}:
        return "trained weights"
    if kinds == {"random"}:
        return "random weights, on whose values speed does not depend"
    return "weights " + " and ".join(f"{entry.weights} ({entry.bundle})" for entry in series)


def pairs_words(ratio: Ratio) -> str:
    """Return what disturbed the ratio, or how many pairs were dropped; empty if neither."""
    if ratio.flags:
        return f", disturbed: {', '.join(ratio.flags)}"
    if ratio.turns and ratio.turns[0] < ratio.turns[1]:
        return f", {ratio.turns[0]} of {ratio.turns[1]} pairs"
    return ""


def ratio_words(ratio: Ratio) -> str:
    interval = "no interval" if ratio.low is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
    return f"{multiple(ratio.value)} ({interval}{pairs_words(ratio)})"


def flags_words(summary: Summary) -> str:
    """Count disturbed and failed rows; empty if there are none."""
    parts = []
    if summary.disturbed:
        rows = f"{len(summary.disturbed)} of {len(summary.records)} rows"
        parts.append(f"{rows} had fewer than three undisturbed processes and are marked")
    if summary.failed:
        parts.append(f"{len(summary.failed)} failed")
    return "; ".join(parts)


def unpredicted_words(summary: Summary) -> str:
    """Return which series have no prediction, grouped by reason; empty if there are none."""
    labels: dict[str, list[str]] = {}
    for series, reason in summary.unpredicted:
        labels.setdefault(reason, []).append(series.label)
    return ". ".join(f"No prediction for {', '.join(names)}: {reason}" for reason, names in labels.items())


def form_words(series: Series) -> str:
    cache = f", {series.kv} cache" if series.kv else ""
    return f"{series.precision}{cache}, {series.engine}" + (f" ({series.dialect})" if series.dialect else "")


def multiple(value: float) -> str:
    return f"{value:.1f}×" if value >= 2 else f"{value:.2f}×"


@dataclass(frozen=True)
class DataTable:
    name: str
    caption: str
    columns: tuple[tuple[str, bool], ...]  # (title, whether of numbers)
    rows: tuple[tuple[str, ...], ...]


def ratio_tables(summary: Summary, short: bool = False) -> list[DataTable]:
    """Return the tables of ratios that have rows. short: of equal ratios only those of representative rows."""
    shown = {(row.test, row.cached, id(entry)) for entry in summary.series for row in entry.representatives}
    equal = tuple(_equal_cells(ratio) for ratio in summary.equal
                  if not short or (ratio.test, ratio.cached, id(ratio.model)) in shown)  # fmt: skip
    shipped = tuple(
        (*_equal_cells(ratio)[:-1], f"{ratio.reference.bundle}: {form_words(ratio.reference)}")
        for ratio in summary.shipped
    )
    tables = (
        DataTable("equal", "At equal engine and format: both sides run the same engine, version and weight format.",
                  EQUAL_COLUMNS, equal),
        DataTable("shipped", "As shipped: engine or format differ, so a ratio includes the effect of model, format and"
                  " engine.", (*EQUAL_COLUMNS[:-1], ("against", False)), shipped),
    )  # fmt: skip
    return [table for table in tables if table.rows]


def records_table(summary: Summary, short: bool = False) -> DataTable:
    """Return the table of rows that `bench` prints, with `short` of representative ones, without empty columns."""
    records = [row for entry in summary.series for row in entry.representatives] if short else summary.records
    columns = columns_of([row.model_dump(by_alias=True, exclude={"rounds_ms", "processes"}) for row in records])
    columns["machine"] = [row.board if row.environment else "-" for row in records]
    columns = {title: cells for title, cells in columns.items() if set(cells) != {"-"}}
    shown = f"{len(records)} of {len(summary.records)} rows" if len(records) < len(summary.records) else "Every row"
    caption = f"{shown} as measured; busy and swapping ones were disturbed."
    titles = tuple((title, title not in (*LEFT, "machine")) for title in columns)
    return DataTable("records", caption, titles, tuple(zip(*columns.values(), strict=True)))


def predicted_table(summary: Summary) -> DataTable:
    """Return a row per predicted quantity, beside its measurement."""
    interval = f"{percent(DEFAULT_CONFIDENCE)} interval"
    titles = ("model", "what", "test", "predicted", "measured", interval, "measured on")
    rows = tuple(
        (one.series.label, one.what, one.test, *(f"{value:,.1f} {one.unit}" for value in (one.predicted, one.measured)),
         one.verdict or "–", one.series.board)
        for one in summary.predictions
    )  # fmt: skip
    kinds = ", ".join(sorted({one.provenance for one in summary.predictions}))
    columns = tuple((title, title in ("predicted", "measured")) for title in titles)
    return DataTable("predicted", f"Predicted for {summary.predicted_for} from {kinds} coefficients.", columns, rows)


def scores_table(evaluations: Sequence[Evaluation]) -> DataTable:
    """Return a row per metric. Uncertainty: an interval over documents, or a standard error over items."""
    rows = []
    for score in evaluations:
        model = (score.model, format_words(score.precision, score.dialect, score.kv), score.engine, score.task)
        items = f"{score.items:,} of {score.of_items:,}", f"{score.truncated:,}"
        for name, metric in score.metrics.items():
            spread = "–" if metric.stderr is None else f"± {metric.stderr:.2g}"
            if metric.interval is not None:
                spread = f"{metric.interval[0]:.4g} to {metric.interval[1]:.4g}"
            rows.append((*model, name, f"{metric.value:.4g}", spread, *items))
    titles = ("model", "format", "engine", "task", "metric", "value", "uncertainty", "items", "cut")
    caption = (
        "Scores of lm-evaluation-harness; bundles ran in the board's runtime. Uncertainty: standard error over items or"
        " 95 % interval over documents. Cut: requests that were longer than the context and lost their beginning."
    )
    columns = tuple((title, title in ("value", "items", "cut")) for title in titles)
    return DataTable("scores", caption, columns, tuple(rows))


def environment_rows(place: Place) -> list[tuple[str, str]]:
    """Return (name, value) of the facts that a machine reports."""
    environment, rows = place.environment, place.rows
    states = [state for row in rows if row.environment for state in (row.environment.before, row.environment.after)]
    heat = [degrees for state in states for degrees in (state.temperatures_c or {}).values()]
    clocks = [clock for state in states for clock in state.clocks_mhz or ()]
    gpus = [state.gpu for state in states if state.gpu is not None]
    swaps = [state.swap_used_mb for state in states if state.swap_used_mb is not None]
    others = [row.environment.others_cpu_share for row in rows if row.environment]
    shares = [share for share in others if share is not None]
    dates = sorted(row.date for row in rows if row.date)
    facts = [
        ("CPUs", environment.cpus), ("Architecture", environment.arch), ("Kernel", environment.kernel),
        ("Governor", _all(state.governor for state in states)), ("Power mode", _all(s.power_mode for s in states)),
        ("Clocks", _span(clocks, "MHz")), ("GPU", _all(gpu.name for gpu in gpus)),
        ("GPU clock", _span([gpu.clock_mhz for gpu in gpus if gpu.clock_mhz is not None], "MHz")),
        ("GPU power", _span([gpu.power_w for gpu in gpus if gpu.power_w is not None], "W")),
        ("Temperatures", _span(heat, "°C")), ("Swap used", _span(swaps, "MB")),
        ("CPU share of other processes", f"at most {max(shares):.1%}" if shares else None),
        ("Engines", _all(row.engine for row in rows)), ("Threads", _all(row.threads for row in rows)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in environment.versions.items() if version)),
        ("Read bandwidth, probed", _span([row.read_gb_s for row in rows if row.read_gb_s], "GB/s")),
        ("Power source", environment.power_source),
        ("Energy", _all(f"{row.energy.source}, {row.energy.rail or 'no rail named'}" for row in rows if row.energy)),
        ("Timed", _all(row.timed for row in rows)), ("Notes", _all(note for row in rows for note in row.notes)),
        ("Measured", " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else None),
        ("Command", _all(row.command for row in rows)),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in facts if value]


def number(value: float) -> str:
    """Format a number with three significant digits and commas between thousands."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


EQUAL_COLUMNS = (
    ("model", False), ("test", False), ("speed of OPT-350M's", True), ("fewer parameters", True), ("weights", False),
    ("format and engine", False), ("threads", False),
)  # fmt: skip


def _equal_cells(ratio: SpeedRatio) -> tuple[str, ...]:
    model, reference, fewer = ratio.model, ratio.reference, ratio.params_ratio
    return (
        model.bundle, ratio.test, ratio_words(ratio.speed), "–" if fewer is None else multiple(fewer),
        _both(model.weights, reference.weights), form_words(model),
        _both(f"{model.threads or '–'}", f"{reference.threads or '–'}"),
    )  # fmt: skip


def _both(first: str, other: str) -> str:
    return first if first == other else f"{first} / {other}"


def _all(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _span(values: Sequence[float], unit: str) -> str | None:
    if not values:
        return None
    low, high = number(min(values)), number(max(values))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
