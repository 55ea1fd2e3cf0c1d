"""What `compare` found, as a table on the terminal."""

from merino_bench.harness.pairs import LEVEL
from merino_edge.cli.tables.layout import Column, Table, show
from merino_edge.cli.terminal import put
from merino_edge.records.compare import SMALLEST_DIFFERENCE, Comparison


def print_comparison(comparison: Comparison) -> None:
    """The table, then rows without a partner, then the notes."""
    show(compare_table(comparison))
    for side, titles in (("A", comparison.only_a), ("B", comparison.only_b)):
        for each in titles:
            put(f"only in {side}: {each}")
    for note in comparison.notes:
        put(f"note: {note}")


COLUMNS = (
    Column("bundle", left=True), Column("engine", left=True, wraps=True), Column("format", left=True),
    Column("test", left=True), Column("threads"), Column("A tok/s"), Column("B tok/s"), Column("B / A"),
    Column("interval", wraps=True), Column("verdict", left=True, wraps=True, least=13),
)  # fmt: skip


def compare_table(comparison: Comparison) -> Table:
    rows = []
    for pair in comparison.pairs:
        ratio = pair.ratio
        interval = "-" if ratio is None or ratio.low is None else f"{ratio.low:.3f} .. {ratio.high:.3f}"
        said = f"{pair.verdict} ({pair.reason})" if pair.reason else pair.verdict
        rows.append([
            pair.bundle, pair.engine, pair.precision, pair.test, f"{pair.threads or '-'}",
            _speed(pair.a_tok_s), _speed(pair.b_tok_s), "-" if ratio is None else f"{ratio.value:.3f}", interval, said,
        ])  # fmt: skip
    limits = f"{LEVEL:.0%} interval over processes; below {SMALLEST_DIFFERENCE:.0%} is no difference"
    return Table(COLUMNS, rows, title="B against A", below=[limits], dropped=["threads", "engine", "A tok/s", "format"])


def _speed(tok_s: float | None) -> str:
    return "-" if tok_s is None else f"{tok_s:,.1f}"
