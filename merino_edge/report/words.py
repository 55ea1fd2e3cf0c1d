"""The report's sentences: headline, claims, and what a reader must know about the values shown."""

from dataclasses import dataclass

from merino_edge.records.compare import LEAST_PROCESSES, Ratio
from merino_edge.records.schema import Record
from merino_edge.report.ratios import PAPER, PAPER_PARAMS, PAPER_SPEED, Against
from merino_edge.report.series import REFERENCE, Series
from merino_edge.report.summary import Summary
from merino_edge.report.svg import number
from merino_runtime.io.board import MB as BYTES_PER_MB


@dataclass(frozen=True)
class Tile:
    """One quantity of the headline's bundle, and the same of the reference."""

    title: str
    value: str
    reference: str


def headline(summary: Summary) -> str:
    best = summary.headline
    if best is not None:
        fewer = f" with {best.params_ratio:.1f}× fewer parameters" if (best.params_ratio or 0) > 1 else ""
        return f"{multiple(best.speed.value)} as fast as {REFERENCE}{fewer}"
    rows = [row for one in summary.series if (row := one.decode) and row.tok_s]
    if not rows:
        return "No decode row"
    fastest = max(rows, key=lambda row: row.tok_s or 0)
    return f"{fastest.bundle} decodes {number(fastest.tok_s or 0)} tokens per second"


def headline_details(summary: Summary) -> str:
    best = summary.headline
    if best is None:
        return f"These records hold no decode row of {REFERENCE} at an equal engine and format, so there is no ratio."
    ours = best.ours
    return (
        f"{ours.bundle} ({_millions(ours)} parameters), decode {best.test}, {ours.precision} "
        f"on {ours.engine} on both sides; {weights_words(ours, best.theirs)}. "
        f"{interval_words(best.speed)}; {summary.measured_on}."
    )


def paper_words() -> str:
    return f"{PAPER_SPEED}× as fast with {PAPER_PARAMS}× fewer parameters: {PAPER}."


def tiles(summary: Summary) -> list[Tile]:
    """Of the headline's two bundles; none without a headline."""
    if summary.headline is None:
        return []
    ours, theirs = summary.headline.ours, summary.headline.theirs
    prefill, decode = (f" ({row.test})" if row else "" for row in (ours.prefill, ours.decode))
    rows = [
        (f"Decode{decode}, tokens/s", _speed(ours.decode), _speed(theirs.decode)),
        (f"Prefill{prefill}, ms", _prefill_ms(ours.prefill), _prefill_ms(theirs.prefill)),
        ("Peak memory, MB", ours.peak_rss_mb, theirs.peak_rss_mb),
        ("On disk, MB", _disk_mb(ours), _disk_mb(theirs)),
    ]
    return [Tile(title, number(mine), number(other)) for title, mine, other in rows if mine and other]


def weights_words(*series: Series) -> str:
    kinds = {one.weights for one in series}
    if kinds == {"real"}:
        return "trained weights"
    if kinds == {"random"}:
        return "random weights, on whose values speed does not depend"
    return "weights " + " and ".join(f"{one.weights} ({one.bundle})" for one in series)


def interval_words(ratio: Ratio) -> str:
    interval = (
        f"no interval, of fewer than {LEAST_PROCESSES} processes" if ratio.low is None or ratio.high is None
        else f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
    )  # fmt: skip
    return interval + pairs_words(ratio)


def pairs_words(ratio: Ratio) -> str:
    """What disturbed the ratio, or how many pairs were dropped for it; empty where neither."""
    if ratio.flags:
        return f", disturbed: {', '.join(ratio.flags)}"
    if ratio.turns and ratio.turns[0] < ratio.turns[1]:
        return f", {ratio.turns[0]} of {ratio.turns[1]} pairs"
    return ""


def ratio_words(ratio: Ratio) -> str:
    interval = "no interval" if ratio.low is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
    return f"{multiple(ratio.value)} ({interval}{pairs_words(ratio)})"


def flags_words(summary: Summary) -> str:
    """Empty where all rows are undisturbed."""
    said = []
    if summary.disturbed:
        rows = f"{len(summary.disturbed)} of {len(summary.records)} rows"
        said.append(f"{rows} had fewer than three undisturbed processes and are marked")
    if summary.failed:
        said.append(f"{len(summary.failed)} failed")
    return "; ".join(said)


def unpredicted_words(summary: Summary) -> str:
    """Which series have no prediction and why, series with the same reason together; empty where there are none."""
    labels: dict[str, list[str]] = {}
    for each in summary.unpredicted:
        labels.setdefault(each.reason, []).append(each.series.label)
    return ". ".join(f"No prediction for {', '.join(names)}: {reason}" for reason, names in labels.items())


def form_words(series: Series) -> str:
    cache = f", {series.kv} cache" if series.kv else ""
    return f"{series.precision}{cache}, {series.engine}" + (f" ({series.dialect})" if series.dialect else "")


def against_words(each: Against) -> str:
    return f"{each.theirs.bundle}: {form_words(each.theirs)}"


def multiple(value: float) -> str:
    return f"{value:.1f}×" if value >= 2 else f"{value:.2f}×"


def _millions(series: Series) -> str:
    return f"{(series.params or 0) / 1e6:,.1f} M"


def _speed(row: Record | None) -> float | None:
    return row.tok_s if row else None


def _prefill_ms(row: Record | None) -> float | None:
    return row.prefill_ms if row else None


def _disk_mb(series: Series) -> float | None:
    size = series.records[0].bundle_bytes
    return None if size is None else size / BYTES_PER_MB
