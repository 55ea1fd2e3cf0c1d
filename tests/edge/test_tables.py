"""Tables on terminals of 80 and 100 columns and in pipes: what must be typed is whole, nothing is too wide."""

import os
import re
import sys
from functools import partial

import forked
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import on_a_terminal

from merino_edge.cli.tables import Column, Table, fitted, floor, natural, plain, total
from merino_edge.cli.terminal import console
from merino_edge.profiles.reading import profile_ids, profile_text

IDS = [*profile_ids(), "host"]
WIDTHS = (80, 100)


@st.composite
def tables(draw):
    columns = [
        Column(f"{draw(st.sampled_from(['t', 'title', 'longer title']))} {place}", draw(st.booleans()),
               draw(st.booleans()), draw(st.integers(0, 20)))
        for place in range(draw(st.integers(1, 8)))
    ]  # fmt: skip
    words = st.lists(st.text("abc[]/", min_size=1, max_size=14), min_size=1, max_size=4).map(" ".join)
    rows = draw(st.lists(st.tuples(*[words] * len(columns)), min_size=1, max_size=4))
    dropped = draw(st.permutations([column.title for column in columns[1:]]))
    return Table(columns, rows, "A table", dropped=dropped[: draw(st.integers(0, len(dropped)))])


@given(tables(), st.integers(10, 120))
def test_a_table_is_fitted_by_wrapping_and_by_leaving_out_and_never_by_cutting(table, width):
    result, widths = fitted(table, width)
    missing = len(table.columns) - len(result.columns)
    gone = set(table.dropped[:missing])
    assert [column.title for column in result.columns] == [
        column.title for column in table.columns if column.title not in gone
    ]
    floors = [floor(column, [row[place] for row in result.rows]) for place, column in enumerate(result.columns)]
    expected = [natural(column, [row[place] for row in result.rows]) for place, column in enumerate(result.columns)]
    assert all(low <= each <= high for low, each, high in zip(floors, widths, expected, strict=True))
    assert total(widths) <= width or (widths == floors and missing == len(table.dropped))
    assert total(widths) >= min(width, total(expected)), "room is used"
    for place, column in enumerate(result.columns):
        for row in result.rows:
            words = row[place].split() if column.wraps else [row[place]]
            assert max(map(len, words)) <= widths[place]


@given(tables())
def test_plain_text_holds_every_cell_and_no_space_too_many(table):
    title, *lines = plain(table).splitlines()
    assert title == table.title and len(lines) == 1 + len(table.rows)
    for line, row in zip(lines, [[column.title for column in table.columns], *table.rows], strict=True):
        assert line == line.rstrip() and re.split(r" {2,}", line.strip()) == list(row)
    widths = [natural(column, [row[place] for row in table.rows]) for place, column in enumerate(table.columns)]
    assert max(map(len, lines)) <= total(widths)


command_on_a_terminal = partial(on_a_terminal, start=partial(forked.Forked, first=forked.SMALL))


def piped(*arguments):
    done = forked.run(arguments, env={**os.environ, "COLUMNS": "80"}, first=forked.SMALL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_devices_shows_every_id_whole(width):
    code, shown = command_on_a_terminal(["devices"], width)
    lines = shown.splitlines()
    assert code == 0 and max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in IDS] == IDS
    assert "decode" in shown and "no room for the columns name" in " ".join(shown.split())


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("arguments", [
    ["devices", "raspberry-pi-4"], ["recommend", "--device", "raspberry-pi-zero-2w"],
    ["design", "--device", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64"],
    ["pareto", "--device", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64"],
])  # fmt: skip
def test_no_line_of_a_table_is_wider_than_the_terminal_or_cut(arguments, width):
    code, shown = command_on_a_terminal(arguments, width, both=False)
    lines = shown.splitlines()
    rule = next(place for place, line in enumerate(lines) if line.startswith("──"))
    table = lines[rule - 1 : rule + 30]
    assert code == 0 and "…" not in shown
    assert all(len(line) <= width for line in table if not re.search("heads of|found by", line))


@pytest.mark.slow
def test_in_a_pipe_devices_is_plain_text_and_as_narrow_as_it_can_be():
    title, head, *rows, _ = piped("devices").splitlines()
    assert [row.split()[0] for row in rows] == IDS
    cells = [re.split(r" {2,}", line) for line in (head, *rows)]
    assert {len(each) for each in cells} == {10} and title.isascii() and head.isascii()
    assert max(map(len, rows)) == sum(max(map(len, column)) for column in zip(*cells, strict=True)) + 2 * 9


MARKUP = "[/home/x] :smile: [bold]12[/bold] 'a' https://x"  # rich would raise, draw a face, drop the tags and color
SHOWS = """
import sys
from merino_edge.cli import terminal
for shown in (terminal.bench_progress(), terminal.counted_progress()):
    with shown as tell:
        tell(1, 4, sys.argv[1])
with terminal.working(sys.argv[1]):
    pass
"""


def test_a_console_prints_text_as_it_is(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for stderr in (False, True):
        console(stderr).print(MARKUP)
    assert capsys.readouterr() == (f"{MARKUP}\n", f"{MARKUP}\n")


@pytest.mark.slow
def test_names_from_files_are_shown_as_they_are_beside_bars_and_spinners():
    code, shown = on_a_terminal([sys.executable, "-c", SHOWS, MARKUP], 200)
    assert code == 0, shown
    lines = {line for line in re.split(r"[\r\n]", shown) if "home" in line}
    assert len(lines) >= 2 and all(MARKUP in line for line in lines), shown
    assert "1/4" in shown  # of the bars


@pytest.mark.slow
def test_a_profile_and_its_file_may_be_named_like_markup(tmp_path):
    path = tmp_path / "[red]:smile:.toml"
    path.write_text(profile_text("raspberry-pi-4").replace('name = "Raspberry', f'name = "{MARKUP}', 1))
    code, shown = command_on_a_terminal(["devices", path], 200)
    assert code == 0 and MARKUP in shown
    code, shown = command_on_a_terminal(["design", "--device", path, "--decode-ms", "0.001"], 200)
    assert code == 1 and "no decoder of this space fits" in shown
    spun = [line for line in re.split(r"[\r\n]", shown) if "searching" in line]
    assert spun and all(f"searching for {MARKUP}" in line for line in spun)
    code, shown = command_on_a_terminal(["devices", tmp_path / "[/nowhere] :smile:.toml"], 200)
    assert code == 1 and "[/nowhere] :smile:.toml" in shown
