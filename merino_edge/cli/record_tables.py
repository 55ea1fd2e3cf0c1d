"""Tables of measurements: a benchmark, a comparison, flashed boards, scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merino_bench.harness.pairs import LEVEL
from merino_bench.harness.render import marks_explained, ratio_cell
from merino_edge.cli.tables import Column, Table, show
from merino_edge.cli.terminal import put
from merino_runtime.io.board import MB as BYTES_PER_MB
from merino_runtime.io.streams import visible

if TYPE_CHECKING:  # loads scipy, which `export` and its refusals do not need
    from merino_edge.delivery.ssh.flash import Flashed
    from merino_edge.profiles.profile import DeviceProfile
    from merino_edge.records.compare import Comparison
    from merino_edge.records.evaluation import Evaluation


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
    measured, predicted = speeds_ms(board)
    return {
        "schema": 1, "host": board.host, "error": board.error or None,
        "model": board.facts.machine.model if board.facts else None, "device": profile.id if profile else None,
        "bundle": board.bundle or None, "precision": board.precision or None,
        "was_there": board.was_there, "replaced": board.replaced, "selftest": "ok" if board.tested else None,
        "measured": {f"{what}_ms": measured.get(what) for what in SPEEDS},
        "predicted": {f"{what}_ms": predicted.get(what) for what in SPEEDS}, "notes": board.notes, "plan": board.plan,
    }  # fmt: skip


def speeds_ms(board: "Flashed", planned: "DeviceProfile | None" = None) -> tuple[dict[str, float], dict[str, float]]:
    """Return the measured medians of SPEEDS, and their predictions by the profile that names the board, or else by
    `planned`."""
    from merino_edge.report.series import series_of
    from merino_edge.report.summary import predictions

    profile = (board.facts and board.facts.profile) or planned
    for series in series_of(board.records)[:1]:
        rows = {"prefill": series.prefill, "decode": series.decode}
        measured = {what: row.ms_p50 for what, row in rows.items() if row is not None and row.ms_p50 is not None}
        predicted = predictions(series, profile) if profile else []
        return measured, {one.what: one.predicted for one in predicted if one.what in SPEEDS}
    return {}, {}


def _row(board: "Flashed") -> list[str]:
    measured, predicted = speeds_ms(board)
    installed = "was there" if board.was_there else "new"
    if board.error or board.replaced:
        installed = "failed" if board.error else f"in place of {visible(board.replaced or '')}"
    speeds = [
        ", ".join(f"{known[what]:,.1f}" if what in known else "-" for known in (measured, predicted))
        for what in SPEEDS
    ]
    model = visible(board.facts.model) if board.facts else "-"
    return [board.host, model, installed, "ok" if board.tested else "-", *speeds]


def evaluation_table(rows: "Sequence[Evaluation]") -> Table:
    """Return a row per metric, as a report has it."""
    from merino_edge.report.tables import scores_table

    scores = scores_table(rows)
    columns = [Column(title, left=not numeric, wraps=title == "model") for title, numeric in scores.columns]
    return Table(columns, scores.rows, title="Scores", below=[scores.caption], dropped=["engine", "cut", "items"])
