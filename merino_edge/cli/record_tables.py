"""Tables of measurements: errors of quantized matrices, a benchmark, a comparison, flashed boards, scores."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merino_bench.harness.pairs import LEVEL
from merino_bench.harness.record import format_words
from merino_bench.harness.render import marks_explained, ratio_cell
from merino_edge.cli.tables import Column, Table, show
from merino_edge.cli.terminal import put
from merino_edge.export.quantize.matrix import MatrixError
from merino_runtime.io.board import MB as BYTES_PER_MB
from merino_runtime.io.visible import visible

if TYPE_CHECKING:  # loads scipy, which `export` and its refusals do not need
    from merino_edge.delivery.ssh.flash import Flashed
    from merino_edge.records.compare import Comparison
    from merino_edge.records.evaluation import Evaluation


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
        title="Quantized matrices; errors relative to the RMS of the matrix",
        dropped=["group_size", "kB", "bits"],
    )  # fmt: skip


def matrices_line(matrices: Sequence[MatrixError]) -> str:
    """Summarize the number of matrices and their errors in one line."""
    worst = max(matrices, key=lambda row: row.mean)
    megabytes = sum(row.nbytes for row in matrices) / 1e6
    return (
        f"{len(matrices)} quantized matrices, {megabytes:,.1f} MB; error relative to the RMS of the matrix:"
        f" {statistics.median(row.mean for row in matrices):.2%} in the median matrix, {worst.mean:.2%} in"
        f" {joined_name(worst.name)}"
    )


def joined_name(name: str) -> str:
    """Shorten `a.q.weight+a.k.weight` to `a.q+k.weight`: parts of a joined matrix differ in their last module."""
    first, *others = (part.split(".") for part in name.split("+"))
    return ".".join([*first[:-2], "+".join(part[-2] for part in (first, *others)), first[-1]])


def bench_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return a row per figure and a column per bundle, from its prefill record and its decode record."""
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


BENCH_ROWS = (
    ("prefill tok/s", "pp", "tok_s", "{:,.0f}"),
    ("  against OPT-350M", "pp", "ratio", "{}"),
    ("decode tok/s", "tg", "tok_s", "{:,.1f}"),
    ("  against OPT-350M", "tg", "ratio", "{}"),
    ("  memory-bandwidth utilization (MBU)", "tg", "mbu", "{:.0%}"),
    ("prefill of the prompt, ms", "pp", "prefill_ms", "{:,.0f}"),
    ("peak RSS, MB", "pp", "peak_rss_mb", "{:,.0f}"),
    ("size on disk, MB", "tg", "bundle_mb", "{:,.0f}"),
    ("parameters, M", "tg", "params_m", "{:,.1f}"),
    ("threads", "tg", "threads", "{}"),
)


def row(records: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """Return the first record of a test that did not fail, with sizes in MB and millions. kind: `pp` or `tg`."""
    for record in records:
        if record["test"].startswith(kind) and record["tok_s"] is not None:
            shown = {"bundle_mb": record["bundle_bytes"] / BYTES_PER_MB, "params_m": record["params"] / 1e6}
            return {**record, **shown, "ratio": ratio_cell(record)}
    return None


def print_comparison(comparison: "Comparison") -> None:
    """Print the table of pairs, then the rows without a partner, then the notes."""
    from merino_edge.records.compare import SMALLEST_DIFFERENCE

    rows = []
    for pair in comparison.pairs:
        ratio = pair.ratio
        interval = "-" if ratio is None or ratio.low is None else f"{ratio.low:.3f} .. {ratio.high:.3f}"
        speeds = ("-" if tok_s is None else f"{tok_s:,.1f}" for tok_s in (pair.a_tok_s, pair.b_tok_s))
        rows.append([
            pair.bundle, pair.engine, pair.precision, pair.test, f"{pair.threads or '-'}", *speeds,
            "-" if ratio is None else f"{ratio.value:.3f}", interval,
            f"{pair.verdict} ({pair.reason})" if pair.reason else pair.verdict,
        ])  # fmt: skip
    limits = f"{LEVEL:.0%} interval over processes; below {SMALLEST_DIFFERENCE:.0%} is no difference"
    dropped = ["threads", "engine", "A tok/s", "format"]
    show(Table(COLUMNS, rows, title="B against A", below=[limits], dropped=dropped))
    for side, titles in (("A", comparison.only_a), ("B", comparison.only_b)):
        for title in titles:
            put(f"only in {side}: {title}")
    for note in comparison.notes:
        put(f"note: {note}")


COLUMNS = (
    Column("bundle", left=True), Column("engine", left=True, wraps=True), Column("format", left=True),
    Column("test", left=True), Column("threads"), Column("A tok/s"), Column("B tok/s"), Column("B / A"),
    Column("interval", wraps=True), Column("verdict", left=True, wraps=True, least=13),
)  # fmt: skip


LEFT = ("board", "what it is", "installed", "self-test")
SPEEDS = ("prefill", "decode")


def flashed_table(done: "Sequence[Flashed]") -> Table:
    """Return one row per board; a speed is measured / predicted, in ms."""
    columns = [Column(title, left=True) for title in LEFT]
    columns += [Column(f"{what} ms, predicted") for what in SPEEDS]
    good = sum(not board.error for board in done)
    return Table(
        columns=columns, rows=[_row(board) for board in done], title=f"Flashed: {good} of {len(done)} boards",
        below=["predicted: for the shipped profile that names the board's model; of a whole prompt, and per token"],
        dropped=["what it is"],
    )  # fmt: skip


def flashed_json(board: "Flashed") -> dict[str, Any]:
    """Return a row of `flash --json`: docs/formats.md."""
    profile = board.facts.profile if board.facts else None
    measured, predicted = measured_ms(board), predicted_ms(board)
    return {
        "schema": 1, "host": board.host, "error": board.error or None,
        "model": board.facts.machine.model if board.facts else None, "device": profile.id if profile else None,
        "bundle": board.bundle or None, "precision": board.precision or None,
        "was_there": board.was_there, "replaced": board.replaced, "selftest": "ok" if board.tested else None,
        "measured": {f"{what}_ms": measured.get(what) for what in SPEEDS},
        "predicted": {f"{what}_ms": predicted.get(what) for what in SPEEDS}, "notes": board.notes, "plan": board.plan,
    }  # fmt: skip


def measured_ms(board: "Flashed") -> dict[str, float]:
    from merino_edge.report.series import series_of

    medians = {}
    for series in series_of(board.records)[:1]:
        for what, row in (("prefill", series.prefill), ("decode", series.decode)):
            if row is not None and row.ms_p50 is not None:
                medians[what] = row.ms_p50
    return medians


def predicted_ms(board: "Flashed") -> dict[str, float]:
    """Predict the speeds with the board's profile; empty if no profile names the board."""
    from merino_edge.report.series import series_of
    from merino_edge.report.summary import predictions

    profile = board.facts.profile if board.facts else None
    predicted = predictions(series_of(board.records)[:1], profile) if profile else []
    return {prediction.what: prediction.predicted for prediction in predicted if prediction.what in SPEEDS}


def _row(board: "Flashed") -> list[str]:
    measured, predicted = measured_ms(board), predicted_ms(board)
    installed = "was there" if board.was_there else "new"
    if board.error or board.replaced:
        installed = "failed" if board.error else f"in place of {visible(board.replaced or '')}"
    speeds = []
    for what in SPEEDS:
        known = f"{measured[what]:,.1f}" if what in measured else "-"
        speeds.append(f"{known}, {predicted[what]:,.1f}" if what in predicted else f"{known}, -")
    model = visible(board.facts.model) if board.facts else "-"
    return [board.host, model, installed, "ok" if board.tested else "-", *speeds]


def evaluation_table(rows: "Sequence[Evaluation]") -> Table:
    """Return a row per metric."""
    cells = [
        [
            row.model, format_words(row.precision, row.dialect, row.kv), row.task, name, f"{metric.value:.4g}",
            uncertainty(metric), f"{row.items:,} of {row.of_items:,}", f"{row.truncated:,}",
        ]
        for row in rows for name, metric in row.metrics.items()
    ]
    named, titles = ("format", "task", "metric"), ("value", "±", "items", "cut")
    return Table(
        columns=[Column("model", left=True, wraps=True), *(Column(title, left=True) for title in named),
                 *map(Column, titles)],
        rows=cells, title="Scores",
        below=["±: standard error over items, or a 95 % interval over the documents of a text. cut: requests that were"
               " longer than the context and lost their beginning"],
        dropped=["cut", "items"],
    )  # fmt: skip


def uncertainty(metric: Any) -> str:
    if metric.interval is not None:
        return f"{metric.interval[0]:.4g} to {metric.interval[1]:.4g}"
    return "-" if metric.stderr is None else f"{metric.stderr:.2g}"
