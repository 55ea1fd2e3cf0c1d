"""Lays out tables: as aligned text for pipes and files, on a terminal within its width. Also the tables of boards.

No word is cut: a column wraps only at spaces, and only if its `wraps` is set. If that is not enough, the table leaves
out its `dropped` columns, and a line below names them."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from merino_edge.cli.terminal import console
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE, Interval, factors, percent
from merino_edge.profiles.coefficients import Facts, LatencyError
from merino_edge.profiles.profile import DeviceProfile, Figure
from merino_edge.profiles.reading import collected_probes
from merino_runtime.io.streams import visible_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from merino_edge.calibration.calibrate import Residual
    from merino_edge.prediction.cost_model import CostModel

GAP = 2  # spaces between columns
DECODERS = {  # that intervals come from
    "designs": "designs that a search chose", "probe": "decoders of the probe",
    "published": "published speeds of other engines",
}  # fmt: skip


class Column(NamedTuple):
    """`wraps`: its cells may be wrapped, down to the longest word or to `least` characters."""

    title: str
    left: bool = False
    wraps: bool = False
    least: int = 0


class Table(NamedTuple):
    """`below`: lines under it. `dropped`: titles of columns that a narrow terminal leaves out, the first one first.
    `lines_after`: numbers of rows, from 0, behind which a line is drawn."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str
    below: Sequence[str] = ()
    dropped: Sequence[str] = ()
    lines_after: Collection[int] = ()


def show(*tables: Table) -> None:
    """Print tables to stdout."""
    screen = console()
    for table in map(shown, tables):
        if screen.is_terminal:
            fitting, widths = fitted(table, screen.width)
            screen.width = max(screen.width, total(widths))  # else rich would cut what cannot be narrower
            screen.print(drawn(fitting, widths))
        else:
            print(plain(table))


def shown(table: Table) -> Table:
    """Return the table without control characters: its names come from files and boards."""
    columns = [column._replace(title=visible_text(column.title)) for column in table.columns]
    rows = [[visible_text(cell) for cell in row] for row in table.rows]
    below = [visible_text(line) for line in table.below]
    return table._replace(columns=columns, rows=rows, below=below, title=visible_text(table.title))


def plain(table: Table) -> str:
    """Format a table aligned by spaces, no wider than its cells."""
    widths = [natural(column, cells_of(table, place)) for place, column in enumerate(table.columns)]
    head = [column.title for column in table.columns]
    rows = [
        (" " * GAP).join(
            cell.ljust(width) if column.left else cell.rjust(width)
            for cell, column, width in zip(row, table.columns, widths, strict=True)
        ).rstrip()
        for row in (head, *table.rows)
    ]
    return "\n".join([table.title, *rows, *table.below])


def fitted(table: Table, width: int) -> tuple[Table, list[int]]:
    """Return the table without the columns that have no room in `width`, and the widths of the others, in characters.
    """
    missing: list[str] = []
    for title in (*table.dropped, None):
        kept = [place for place, column in enumerate(table.columns) if column.title not in missing]
        columns = [table.columns[place] for place in kept]
        floors = [floor(table.columns[place], cells_of(table, place)) for place in kept]
        if title is None or total(floors) <= width:
            break
        missing.append(title)
    widths = [natural(table.columns[place], cells_of(table, place)) for place in kept]
    for wrapping in (False, True):  # long titles are wrapped first
        group = [place for place, column in enumerate(columns) if column.wraps == wrapping]
        while total(widths) > width and (wider := [place for place in group if widths[place] > floors[place]]):
            widths[max(wider, key=widths.__getitem__)] -= 1
    rows = [[row[place] for place in kept] for row in table.rows]
    note = [f"no room for the columns {', '.join(missing)}: a pipe shows them all"] if missing else []
    return table._replace(columns=columns, rows=rows, below=[*table.below, *note]), widths


def cells_of(table: Table, place: int) -> list[str]:
    return [row[place] for row in table.rows]


def natural(column: Column, cells: Sequence[str]) -> int:
    """Return the width without wrapping."""
    return max(map(len, (column.title, *cells)))


def floor(column: Column, cells: Sequence[str]) -> int:
    """Return the least width: of the longest word of the title and, where cells do not wrap, of the longest cell."""
    words = [word for text in (column.title, *cells) for word in text.split()]
    longest = max(map(len, words), default=0)
    if column.wraps:
        return min(natural(column, cells), max(longest, column.least))
    return max([*map(len, column.title.split()), *map(len, cells)], default=0)


def total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def drawn(table: Table, widths: Sequence[int]) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(
        title=Text(table.title), title_justify="left", caption=Text("\n".join(table.below)) if table.below else None,
        caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0),
    )  # fmt: skip
    for column, width in zip(table.columns, widths, strict=True):
        rich_table.add_column(Text(column.title), justify="left" if column.left else "right", width=width)
    for number, row in enumerate(table.rows):
        rich_table.add_row(*map(Text, row), end_section=number in table.lines_after)
    return rich_table


SHAPE = (
    "shape: width x FFN ratio x layers of each block; g: a gated FFN; k: KV heads, where fewer than query heads; s: the"
    " block's layers share their weights"
)
ENTROPY = "entropy: what the search maximizes, in nats of randomly drawn layers, weighted: see docs/search.md"

def on_backend(profile: DeviceProfile, name: str) -> str:
    """Return the board, by its name or id; where it has several backends, with the one that the costs are of."""
    return f"{name} on {profile.backend}" if len(profile.backends) > 1 else name


def other_backends(profile: DeviceProfile) -> str:
    """Return the boards that give the costs in the board's other backends; empty if it has one backend."""
    others = [f"--board {profile.id}:{name}" for name in profile.backends if name != profile.backend]
    return f" ({', '.join(others)} for the other)" if others else ""


def interval_line(costs: "Sequence[CostModel]") -> str:
    """Return how the limits on latency and energy are judged, by one cost model per weight format."""
    notes = []
    if any(cost.decode_factors or cost.prefill_factors for cost in costs):
        share = percent(costs[0].confidence)
        notes.append(f"the upper bound of each {share} prediction interval must meet its latency or energy budget")
    for cost in costs:
        factors = {"decode": cost.decode_factors, "prefill": cost.prefill_factors}
        without = [phase for phase, known in factors.items() if known is None]
        if without:
            which = "no interval" if len(without) == len(factors) else f"no {without[0]} interval"
            notes.append(f"{which}: {cost.on.why_no_interval()}")
    return "; ".join(dict.fromkeys(notes))


def interval_shown(interval: Interval | None, confidence: float | None = None) -> str:
    """Format an interval for a cell, behind the predicted value; empty if there is none."""
    if not interval:
        return ""
    low, high = (
        f"{value:.3g}" if value < 1 else f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
        for value in interval
    )
    return f" ({low} to {high}{f', {percent(confidence)}' if confidence else ''})"


def devices_table(profiles: Sequence[DeviceProfile]) -> Table:
    """List the boards. `host` is the last row; listing it measures nothing."""
    left = ("id", "name", "CPU", "ISA", "backend")
    titles = (*left[:-1], "RAM MB", "backend", "read GB/s", "decode ms", "memory MB", "context")
    rows = [
        [
            profile.id, profile.name, f"{profile.cpu.cores.value:g}x {profile.cpu.core}", " ".join(profile.isa),
            f"{profile.memory.ram_mb.value:g}", profile.backend, f"{read_gb_s(profile):g}",
            f"{profile.budget.decode_ms:g}", f"{profile.budget.memory_mb:g}", f"{profile.budget.context}",
        ]
        for profile in profiles
    ]  # fmt: skip
    return Table(
        columns=[Column(title, left=title in left) for title in titles],
        rows=[*rows, ["host", "this machine", "this machine", "-", "-", "onnxruntime", *["-"] * 4]],
        title="Boards and their default budgets",
        below=[
            "`devices ID` shows every figure of a board. host is measured when it is first used, for a minute",
            *(line for profile in profiles for line in measured_by(profile)),
        ],
        dropped=["name", "ISA", "CPU"],
    )


def read_gb_s(profile: DeviceProfile) -> float:
    """Return the read bandwidth of the profile's backend."""
    figure = profile.figure(f"performance.{profile.backend}.read_gb_s")
    assert figure is not None, "a profile's backend has figures"
    return figure.value


def device_table(profile: DeviceProfile) -> Table:
    """Return every figure of one board with its kind and source, in all of its backends."""
    speeds: dict[str, Facts] = {name: getattr(profile.performance, name) for name in profile.backends}
    parts: list[tuple[str, Facts]] = [("cpu", profile.cpu), *([("gpu", profile.gpu)] if profile.gpu else [])]
    parts += [("memory", profile.memory), *((f"performance.{name}", speed) for name, speed in speeds.items())]
    figures = [
        [f"{part}.{key}", f"{figure.value:g}", figure.kind, figure.source]
        for part, facts in [*parts, ("power", profile.power)] for key, figure in facts if isinstance(figure, Figure)
    ]  # fmt: skip
    modes = [mode for speed in speeds.values() if (mode := getattr(speed, "power_mode", None))]
    budget = profile.budget
    limits = (("decode_ms", budget.decode_ms), ("memory_mb", budget.memory_mb), ("context", budget.context))
    return Table(
        columns=[
            Column("figure", left=True), Column("value"), Column("kind", left=True),
            Column("source", left=True, wraps=True),
        ],
        rows=[*figures, *([f"budget.{key}", f"{value:g}", "", "default budget"] for key, value in limits)],
        title=f"{profile.name} ({profile.id})",
        below=[*(f"the GPU's figures are of its power mode {mode}" for mode in modes), *measured_by(profile)],
        lines_after=[len(figures) - 1],
    )  # fmt: skip


def measured_by(profile: DeviceProfile) -> list[str]:
    """Return a line if people sent probes of the board."""
    count = len(collected_probes(profile.id))
    many = "1 probe" if count == 1 else f"{count} probes"
    line = f"{profile.id}: measured by {many}; `calibrate --board {profile.id} -o FILE` fits to them"
    return [line] if count else []


def residual_table(residuals: Sequence["Residual"]) -> Table:
    return Table(
        columns=[Column("measured", left=True, wraps=True), Column("rows"), Column("median"), Column("worst")],
        rows=[[row.kind, f"{row.rows}", f"{row.median:.1%}", f"{row.worst:.1%}"] for row in residuals],
        title="Residuals of the latency model: |predicted / measured - 1| over the probe's rows",
    )


def interval_table(errors: Mapping[str, LatencyError]) -> Table:
    """errors: by weight format and phase, as `Fit.errors`."""
    rows = []
    for name, error in errors.items():
        within = factors(error, DEFAULT_CONFIDENCE)
        assert within is not None
        rows.append([name, f"{within.low:.2f} to {within.high:.2f}", f"{error.decoders or '?'} {DECODERS[error.of]}"])
    return Table(
        columns=[Column("latency", left=True), Column("measured / predicted"), Column("of", left=True)],
        rows=rows,
        title=f"{percent(DEFAULT_CONFIDENCE)} prediction intervals, from decoders left out of the fit",
        below=[] if rows else ["none: the probe timed too few whole decoders"],
    )
