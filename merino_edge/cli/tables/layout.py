"""How a table is laid out: aligned text for pipes and files; on a terminal within its width, words kept whole.

What must not be cut never is: a column wraps only at spaces, and only where it is said to. Columns of lesser worth are
left out before that is not enough, and a line says which.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from merino_edge.cli.terminal import console
from merino_runtime.io.visible import visible_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

GAP = 2  # spaces between columns


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
    """On stdout."""
    screen = console()
    for table in map(shown, tables):
        if screen.is_terminal:
            fitting, widths = fitted(table, screen.width)
            screen.width = max(screen.width, total(widths))  # else rich would cut what cannot be narrower
            screen.print(drawn(fitting, widths))
        else:
            print(plain(table))


def shown(table: Table) -> Table:
    """With names that steer no terminal: they come from files and boards."""
    columns = [column._replace(title=visible_text(column.title)) for column in table.columns]
    rows = [[visible_text(cell) for cell in row] for row in table.rows]
    below = [visible_text(line) for line in table.below]
    return table._replace(columns=columns, rows=rows, below=below, title=visible_text(table.title))


def plain(table: Table) -> str:
    """Aligned by spaces, no wider than the cells need."""
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
    """The table without the columns that have no room in `width`, and the widths of the others, in characters."""
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
    said = [f"no room for the columns {', '.join(missing)}: a pipe shows them all"] if missing else []
    return table._replace(columns=columns, rows=rows, below=[*table.below, *said]), widths


def cells_of(table: Table, place: int) -> list[str]:
    return [row[place] for row in table.rows]


def natural(column: Column, cells: Sequence[str]) -> int:
    """The width without wrapping."""
    return max(map(len, (column.title, *cells)))


def floor(column: Column, cells: Sequence[str]) -> int:
    """The least width: of the longest word of the title and, where cells do not wrap, of the longest cell."""
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

    found = RichTable(
        title=Text(table.title), title_justify="left", caption=Text("\n".join(table.below)) if table.below else None,
        caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0),
    )  # fmt: skip
    for column, width in zip(table.columns, widths, strict=True):
        found.add_column(Text(column.title), justify="left" if column.left else "right", width=width)
    for number, row in enumerate(table.rows):
        found.add_row(*map(Text, row), end_section=number in table.lines_after)
    return found
