"""The table of `bench` on terminals: no line is wider, nothing is left out; a pipe gets one table."""
import os
import subprocess

import pytest
import quick_bench
from hypothesis import given
from hypothesis import strategies as st
from pseudo_terminal import on_a_terminal

import merino_bench
import merino_runtime
from merino_bench.harness.cases import prefill_case
from merino_bench.harness.record import failed_record
from merino_bench.harness.render import BY_WORTH, as_markdown, titles_within

ROOTS = os.pathsep.join([os.path.dirname(os.path.dirname(package.__file__))
                         for package in (merino_runtime, merino_bench)] + [os.path.dirname(quick_bench.__file__)])
KEYS = ("bundle", "test", "format", "threads", "engine")
TITLES = ["bundle", "test"] + list(BY_WORTH)


@st.composite
def columns(draw):
    """Cells of a table by title; few different ones, so that rows are often alike in a key."""
    rows = draw(st.integers(1, 5))
    cell = st.text("ab ", min_size=1, max_size=draw(st.integers(1, 12)))
    return {title: draw(st.lists(cell, min_size=rows, max_size=rows)) for title in TITLES}


def width_of(columns, titles):
    return sum(max([3, len(title)] + [len(cell) for cell in columns[title]]) + 3 for title in titles) + 1


def different(columns, titles):
    """The number of rows that differ in these columns."""
    return len({tuple(columns[title][row] for title in titles) for row in range(len(columns["test"]))})


@given(columns(), st.integers(40, 300))
def test_every_column_is_in_a_table_and_no_table_is_wider_where_it_can_be_narrower(columns, width):
    tables = titles_within(columns, TITLES, width)
    assert {title for table in tables for title in table} == set(TITLES)
    if width_of(columns, TITLES) <= width:
        assert tables == [TITLES]
        return
    keys = [title for title in tables[0] if all(title in table for table in tables)]
    assert keys[:2] == ["bundle", "test"]
    others = [title for table in tables for title in table if title not in keys]
    assert len(others) == len(set(others))
    for table in tables:
        assert width_of(columns, table) <= width or len(table) <= len(keys) + 1
    assert different(columns, keys) == different(columns, KEYS), "rows are told apart as well as they can be"


@pytest.fixture
def folder(bundle_dirs):
    return str(bundle_dirs["portable"])


def bench(folder):
    return quick_bench.CALL + ["bench", folder, "--baseline", folder, "-p", "8", "-n", "4", "-r", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 100])
def test_no_line_of_a_table_is_wider_than_the_terminal(folder, width):
    code, shown = on_a_terminal(bench(folder), width, both=False, PYTHONPATH=ROOTS)
    lines = shown.splitlines()
    assert code == 0
    tables = [line for line in lines if line.startswith("|")]
    assert tables and max(map(len, tables)) <= width
    heads = " ".join(line for line in tables if "| test" in line)
    for title in ("tok/s", "vs baseline", "flags", "RSS MB", "MBU", "bundle MB", "load ms"):
        assert title in heads
    output = " ".join(lines)
    assert "all rows: format fp32 portable; weights real; engine onnxruntime" in output


@pytest.mark.slow
def test_a_pipe_gets_one_table_with_all_columns(folder):
    environment = dict(os.environ, PYTHONPATH=ROOTS, COLUMNS="80")
    process = subprocess.Popen(bench(folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    lines = process.communicate()[0].decode("utf-8").splitlines()
    assert process.returncode == 0
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert set(TITLES) - {"J/token"} <= set(head) and sum(line.startswith("| :") for line in lines) == 1


def test_a_table_that_fits_stays_whole():
    rows = [failed_record({"bundle": name}, prefill_case(8), "no such bundle") for name in ("one", "two")]
    assert as_markdown(rows, 300) == as_markdown(rows) != as_markdown(rows, 100)
