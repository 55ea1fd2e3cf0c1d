"""What `compare` found, as a table on the terminal."""

from rich.table import Table

from merino_bench.harness.interval import LEVEL
from merino_edge.cli.terminal import console
from merino_edge.records.compare import SMALLEST_DIFFERENCE, Comparison


def print_comparison(comparison: Comparison) -> None:
    """The table, then rows without a partner, then the notes."""
    console().print(compare_table(comparison))
    for side, titles in (("A", comparison.only_a), ("B", comparison.only_b)):
        for each in titles:
            print(f"only in {side}: {each}")
    for note in comparison.notes:
        print(f"note: {note}")


def compare_table(comparison: Comparison) -> Table:
    limits = f"{LEVEL:.0%} interval over repetitions; below {SMALLEST_DIFFERENCE:.0%} is no difference"
    table = Table(title="B against A", caption=limits)
    left = ("bundle", "engine", "format", "test", "verdict")
    columns = ("bundle", "engine", "format", "test", "threads", "A tok/s", "B tok/s", "B / A", "interval", "verdict")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right")
    for pair in comparison.pairs:
        ratio = pair.ratio
        interval = "-" if ratio is None or ratio.low is None else f"{ratio.low:.3f} .. {ratio.high:.3f}"
        said = f"{pair.verdict} ({pair.reason})" if pair.reason else pair.verdict
        table.add_row(
            pair.bundle, pair.engine, pair.precision, pair.test, f"{pair.threads or '-'}",
            _speed(pair.a_tok_s), _speed(pair.b_tok_s), "-" if ratio is None else f"{ratio.value:.3f}", interval, said,
        )  # fmt: skip
    return table


def _speed(tok_s: float | None) -> str:
    return "-" if tok_s is None else f"{tok_s:,.1f}"
