"""What docs/start.md and docs/board.md show runs as it stands: in order, in an empty folder, offline."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from merino_edge.records.reading import read_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# By `make test` with a small search of decoders and quick benchmarks besides.
QUICK = f"{forked.SMALL}; import quick_bench; quick_bench.quicken(); quick_bench.quicken_apps()"
# As the pages have it: as it runs here.
SHORTER = {"-n 40000": "-n 2000", "--steps 500": "--steps 4", "-r 3": "-r 1"}
CLOSED_PORT = "http://127.0.0.1:9"  # as a proxy: whatever asks the network is refused
OUTPUTS = {"-o", "--plot", ">"}


def blocks(page):
    """The blocks of shell commands of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def steps():
    """The block of the section `Step by step`."""
    (block,) = [block for block in blocks("docs/start.md") if "merino-edge train " in block]
    return block


def shortened(block, pairs):
    for written, here in pairs.items():
        assert written in block, f"the block has no {written}: SHORTER is outdated"
        block = block.replace(written, here)
    return block


def outputs(block):
    """The paths that its commands are told to write."""
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [path for words in lines for option, path in zip(words, words[1:], strict=False) if option in OUTPUTS]


@pytest.fixture(scope="module")
def shell(tmp_path_factory, nightly):
    """A function that gives a block to one shell as a paste does, by stdin; the first command that fails ends it. Its
    `merino-edge` is forked: how that one starts is test_start.py's."""
    home, programs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("programs")
    assert shutil.which("merino-edge", path=Path(sys.executable).parent), "merino-edge is not installed"
    keys, more = forked.program(programs / "merino-edge", "" if nightly else QUICK)
    path = map(str, (programs, Path(sys.executable).parent, os.environ["PATH"]))
    environment = {
        **more,
        **os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "https_proxy": CLOSED_PORT,
        "http_proxy": CLOSED_PORT, "PATH": os.pathsep.join(path),
    }  # fmt: skip

    def run(block, folder):
        done = subprocess.run(
            ["bash", "-e", "-x"], input=block, cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
            **keys,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def pasted(shell, tmp_path_factory):
    """The folder in which the steps ran, with their output."""
    folder = tmp_path_factory.mktemp("pasted")
    return folder, shell(shortened(steps(), SHORTER), folder)


def test_each_step_runs_and_writes_what_it_names(pasted):
    folder, _ = pasted
    named = outputs(steps())
    assert len(named) >= 7 and [path for path in named if not (folder / path).exists()] == []


def test_the_steps_train_a_model_and_measure_that_one(pasted):
    folder, printed = pasted
    assert len(set((folder / "stories.txt").read_text(encoding="utf-8").split())) > 300, "one sentence over and over"
    first, second = (read_records([folder / name]) for name in ("first.json", "second.json"))
    assert {(row.bundle, row.weights) for row in first} == {("zero", "real"), ("embedded", "real")}
    assert {(row.bundle, row.weights) for row in second} == {("zero", "real")}
    assert "held-out loss" in printed and "trained weights" in printed


def test_the_package_for_a_board_is_made_and_verified(pasted, shell):
    """Left out: what needs an index (--wheels) or the board."""
    (block,) = [block for block in blocks("docs/start.md") if "merino-edge pack " in block]
    here = "\n".join(line for line in block.splitlines() if "--ssh" not in line and "my-zero.toml" not in line)
    folder, _ = pasted
    verify = "merino-edge info --check zero.merino --trust fleet.pub"
    printed = shell(f"{shortened(here, {' --wheels': ''})}\n{verify}", folder)
    assert "every sha256 as expected; signed by " in printed


def test_what_the_pages_run_on_a_board_runs_on_that_bundle(pasted, shell):
    """Left out: installing, which needs an index (tests/targets/test_install_wheels.py), the probe's minute, and what
    needs a GPU."""
    on_cpu = [block for block in blocks("docs/board.md") if "tensorrt" not in block]
    of_page = [line for block in on_cpu for line in block.splitlines() if "merino.pyz" in line]
    assert len(of_page) >= 3
    lines = [re.sub(r"^\S*python3?\b", shlex.quote(sys.executable), line) for line in of_page]
    there = "\n".join(line for line in dict.fromkeys(lines) if " probe " not in line)
    folder, _ = pasted
    assert "tok/s" in shell(shortened(there, {"-r 3": SHORTER["-r 3"]}), folder / "bundle")
