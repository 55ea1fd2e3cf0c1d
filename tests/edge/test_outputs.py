"""Outputs of the commands: refused before the work, saved before anything is printed, never in place of an input.
Tables on terminals and in pipes."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import forked
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import on_a_terminal
from sample_records import record

from merino_edge.bundles.files import described
from merino_edge.cli.tables import Column, Table, fitted, total
from merino_edge.cli.terminal import console
from merino_edge.export.export import export
from merino_edge.export.source import random_source
from merino_edge.profiles.reading import profile_ids, profile_text
from merino_runtime.errors import MerinoError

SMALL = ["--board", "raspberry-pi-zero-2w", "--decode-ms", "4", "--vocab", "300", "--context", "64"]
DESIGN = ["design", *SMALL, "--precision", "int8"]
BY_NIGHT = pytest.mark.nightly
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")


@pytest.fixture
def run(here, monkeypatch, tmp_path):
    """`here` in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return here


def apart(*arguments, cwd, **streams):
    """(exit code, stdout, stderr) of a process of its own."""
    done = forked.run(arguments, cwd=cwd, **{name: file.fileno() for name, file in streams.items()})
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


IMPOSSIBLE = ["design", "--board", "raspberry-pi-4", "--decode-ms", "0.1"]  # refused by the search


@pytest.mark.parametrize("words", [
    [*IMPOSSIBLE, "-o"],
    ["report", "missing.json", "-o"],
    ["calibrate", "--probe", "missing.json", "--board", "raspberry-pi-4", "-o"],
])  # fmt: skip
def test_a_folder_is_refused_before_the_work(words, run, tmp_path):
    (tmp_path / "folder.svg").mkdir()
    code, out, err = run(*words, "folder.svg")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "cannot write folder.svg: it is a folder. Name a file in it, or another path." in err
    assert os.listdir(tmp_path) == ["folder.svg"] and os.listdir(tmp_path / "folder.svg") == []


@pytest.mark.parametrize("there", ["a file", "a folder"])
def test_an_export_to_what_is_no_bundle_is_refused_before_the_work(there, run, tmp_path):
    if there == "a file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
    code, out, err = run("export", "missing", "-o", "out")
    assert (code, out) == (1, "") and "out is a file" in err or "out holds other files" in err
    assert "missing" not in err
    assert run("export", "missing", "-o", "-")[2] == (
        "merino-edge: -o - is stdout, a folder is to be written: choose another -o\n"
    )


@pytest.mark.parametrize(("name", "into"), [
    ("-", "pipe"), ("stdout", "file"), pytest.param("-", "file", marks=BY_NIGHT),
    pytest.param("stdout", "pipe", marks=BY_NIGHT),
])  # fmt: skip
def test_stdout_as_the_output_holds_the_data_alone(name, into, tmp_path):
    """`stdout` is a link as /dev/stdout is one, which once was replaced by a file."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    with open(tmp_path / "file", "wb") as file:
        code, out, err = apart(*DESIGN, "-o", name, cwd=tmp_path, **({"stdout": file} if into == "file" else {}))
    assert code == 0 and "wrote" not in err
    data = json.loads(out if into == "pipe" else (tmp_path / "file").read_text())
    assert data["device"] == "raspberry-pi-zero-2w" and (tmp_path / "stdout").is_symlink()


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


def nowhere():
    return open("/dev/full", "wb")


PRINTS = [(closed_pipe, 141), pytest.param(nowhere, 1, marks=FULL)]


@pytest.mark.parametrize(("stdout", "expected"), PRINTS)
@pytest.mark.parametrize("more", [[], pytest.param(["--json"], marks=BY_NIGHT)])
def test_a_design_is_kept_where_printing_fails(stdout, expected, more, tmp_path):
    with stdout() as unwritable:
        code, _, err = apart(*DESIGN, *more, "-o", "design.json", cwd=tmp_path, stdout=unwritable)
    assert code == expected and json.loads((tmp_path / "design.json").read_text())["schema"] == 6
    full = "merino-edge: cannot write to stdout: No space left on device. Free space on that disk, or name a path on"
    assert err.startswith("wrote design.json\n" + (full if expected == 1 else "")) and err.count("\n") <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("stdout", "expected"), [PRINTS[0], pytest.param(*PRINTS[1].values, marks=[FULL, BY_NIGHT])])
def test_a_bundle_is_kept_where_printing_fails(stdout, expected, tiny_checkpoint, tmp_path):
    with stdout() as unwritable:
        code, *_ = apart("export", tiny_checkpoint, "-o", "b", cwd=tmp_path, stdout=unwritable)
    assert code == expected and described(tmp_path / "b")["weights"] == "trained"


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("way", ["itself", "by a link", "a file in it", "as weights", "as text"])
def test_an_export_never_replaces_its_input(way, run, bundle_dirs, tmp_path):
    shutil.copytree(bundle_dirs["fused"], tmp_path / "bundle")
    (tmp_path / "link").symlink_to("bundle")
    before = content("bundle")
    inside = tmp_path / "bundle" / "tokenizer.json"
    words = {
        "itself": ["bundle", "-o", "bundle"],
        "by a link": ["bundle", "-o", "link"],
        "a file in it": [inside, "-o", "bundle"],
        "as weights": ["opt-350m", "--set=weights=bundle", "-o", "bundle"],
        "as text": ["embedded", "--text", inside, "-o", "bundle"],
    }[way]  # fmt: skip
    code, out, err = run("export", *words)
    assert (code, out) == (1, "") and "would replace the input" in err and "choose another -o" in err
    assert content("bundle") == before and sorted(os.listdir(tmp_path)) == ["bundle", "link"]


def test_a_file_never_replaces_its_input(run, tmp_path):
    records, profile = json.dumps([record()]), profile_text("raspberry-pi-4")
    (tmp_path / "r.json").write_text(records)
    os.link(tmp_path / "r.json", tmp_path / "same.json")
    (tmp_path / "my.toml").write_text(profile)
    (tmp_path / "probe.json").write_text("{}")
    for words in (
        ["report", "r.json", "-o", "r.json"], ["report", "r.json", "-o", "./same.json"],
        ["report", "r.json", "--board", "my.toml", "-o", "my.toml"],
        ["calibrate", "--probe", "probe.json", "--board", "raspberry-pi-4", "-o", "probe.json"],
        ["calibrate", "--probe", "probe.json", "--board", "my.toml", "-o", "my.toml"],
        ["design", "--board", "my.toml", "-o", "my.toml"],
    ):  # fmt: skip
        code, out, err = run(*words)
        assert (code, out) == (1, "") and err.count("\n") == 1, words
        assert f"-o {words[-1].removeprefix('./')} would replace the input" in err, err
    assert (tmp_path / "r.json").read_text() == records and (tmp_path / "my.toml").read_text() == profile
    assert run("report", "r.json", "-o", "r.html")[0] == 0


def test_random_weights_do_not_replace_trained_ones(bundle_dirs, tiny_arch, tmp_path):
    out = Path(shutil.copytree(bundle_dirs["fused"], tmp_path / "bundle"))
    before, random = content(out), random_source(tiny_arch, "tiny")
    with pytest.raises(MerinoError, match="holds trained weights .checkpoint tiny.*are random: .*delete that folder"):
        export(random, out)
    assert content(out) == before
    (out / "bundle.json").write_text('{"weights": ')
    with pytest.raises(MerinoError, match="unknown weights .bundle.json is damaged"):
        export(random, out)


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
    missing = set(table.dropped[: len(table.columns) - len(result.columns)])
    assert [column.title for column in result.columns] == [
        column.title for column in table.columns if column.title not in missing
    ]
    assert total(widths) <= width or len(missing) == len(table.dropped)
    for place, column in enumerate(result.columns):
        for row in result.rows:
            words = row[place].split() if column.wraps else [row[place]]
            assert max(map(len, words)) <= widths[place]


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
@pytest.mark.parametrize("width", [WIDTHS[0], pytest.param(WIDTHS[1], marks=BY_NIGHT)])
@pytest.mark.parametrize("arguments", [
    ["devices", "raspberry-pi-4"], ["recommend", "--board", "raspberry-pi-zero-2w"],
    ["design", "--board", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64"],
])  # fmt: skip
def test_no_line_of_a_table_is_wider_than_the_terminal_or_cut(arguments, width):
    code, shown = command_on_a_terminal(arguments, width, both=False)
    lines = shown.splitlines()
    rule = next(place for place, line in enumerate(lines) if line.startswith("──"))
    table = lines[rule - 1 : rule + 30]
    assert code == 0 and "…" not in shown
    assert all(len(line) <= width for line in table if not re.search("heads of|found by", line))


MARKUP = "[/home/x] :smile: [bold]12[/bold] 'a' https://x"  # rich would raise, draw a face, drop the tags and color


def test_a_console_prints_text_as_it_is(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for stderr in (False, True):
        console(stderr).print(MARKUP)
    assert capsys.readouterr() == (f"{MARKUP}\n", f"{MARKUP}\n")
