"""Tables of bundles: what quantising did to each matrix, and the records of a benchmark side by side."""

import statistics
from collections.abc import Sequence
from typing import Any

from merino_bench.harness.render import marks_explained, ratio_words
from merino_edge.cli.tables.layout import Column, Table
from merino_edge.export.quantisation.groups import MatrixError
from merino_runtime.io.board import MB as BYTES_PER_MB


def matrix_table(matrices: Sequence[MatrixError]) -> Table:
    titles = ("bits", "group_size", "kB", "mean error", "maximum error")
    return Table(
        columns=[Column("matrix", left=True), *map(Column, titles)],
        rows=[
            [
                joined_name(row.name), f"{row.bits}", f"{row.group_size}", f"{row.nbytes / 1e3:,.0f}",
                f"{row.mean:.2%}", f"{row.worst:.2%}",
            ]
            for row in matrices
        ],
        title="Quantised matrices; errors relative to the RMS of the matrix",
        dropped=["group_size", "kB", "bits"],
    )  # fmt: skip


def matrices_line(matrices: Sequence[MatrixError]) -> str:
    """How many there are and how large their errors, in one line."""
    worst = max(matrices, key=lambda row: row.mean)
    megabytes = sum(row.nbytes for row in matrices) / 1e6
    return (
        f"{len(matrices)} quantised matrices, {megabytes:,.1f} MB; error relative to the RMS of a matrix:"
        f" {statistics.median(row.mean for row in matrices):.2%} in the median matrix, {worst.mean:.2%} in"
        f" {joined_name(worst.name)}"
    )


def joined_name(name: str) -> str:
    """`a.q.weight+a.k.weight` as `a.q+k.weight`: the parts of a joined matrix differ in their last module."""
    first, *others = (part.split(".") for part in name.split("+"))
    return ".".join([*first[:-2], "+".join(part[-2] for part in (first, *others)), first[-1]])


def bench_table(records: Sequence[dict[str, Any]]) -> Table:
    """A row per figure, the bundles side by side: of each its prefill and its decode record."""
    names = list(dict.fromkeys(record["bundle"] for record in records))
    by_name = {name: [record for record in records if record["bundle"] == name] for name in names}
    rows = []
    for title, kind, field, form in BENCH_ROWS:
        values = [(row(by_name[name], kind) or {}).get(field) for name in names]
        rows.append([title, *("-" if value is None else form.format(value) for value in values)])
    return Table(
        columns=[Column("", left=True), *(Column(name, wraps=True) for name in names)],
        rows=rows, title="Measured on this machine (batch 1)", below=marks_explained(records),
    )  # fmt: skip


def ratio_cell(record: dict[str, Any]) -> str | None:
    """The ratio with its interval and marks; None without a baseline."""
    ratio = record.get("ratio_to_baseline")
    if ratio is None:
        return None
    return ratio_words(ratio, record["ratio_interval"], record["ratio_turns"], record["ratio_flags"] or ())


BENCH_ROWS = (
    ("prefill tok/s", "pp", "tok_s", "{:,.0f}"),
    ("  against OPT-350M", "pp", "ratio", "{}"),
    ("decode tok/s", "tg", "tok_s", "{:,.1f}"),
    ("  against OPT-350M", "tg", "ratio", "{}"),
    ("  share of the read-bandwidth ceiling", "tg", "ceiling_share", "{:.0%}"),
    ("prefill of the prompt, ms", "pp", "prefill_ms", "{:,.0f}"),
    ("peak RSS, MB", "pp", "peak_rss_mb", "{:,.0f}"),
    ("size on disk, MB", "tg", "bundle_mb", "{:,.0f}"),
    ("parameters, M", "tg", "params_m", "{:,.1f}"),
    ("threads", "tg", "threads", "{}"),
)


def row(records: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The first record of a kind of test that did not fail, with sizes in the units people read."""
    for record in records:
        if record["test"].startswith(kind) and record["tok_s"] is not None:
            shown = {"bundle_mb": record["bundle_bytes"] / BYTES_PER_MB, "params_m": record["params"] / 1e6}
            return {**record, **shown, "ratio": ratio_cell(record)}
    return None
