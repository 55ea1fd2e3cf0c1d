"""No verb of the workstation imports a stranger's module from the current folder, nor does a process that it starts.
Real processes in a bundle's folder with such modules. The board's verbs: tests/bench/test_bench_faults.py."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_folder import Hostile
from sample_models import ARCH, write_stories
from sample_probe import MACHINE, synthetic
from sample_records import opt, record
from sample_roots import make_packed, make_root

from merino_bench.harness.render import as_json
from merino_edge.delivery.ssh.command import AGENT, COMMAND
from merino_runtime.delivery import agent

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="programs of Linux")]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys\nfrom merino_edge.cli.start import main\nsys.exit(main())\n"
BENCH = ("bench", ".", "-p", "8", "-n", "0", "-r", "1", "-t", "1")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a board's root")
VERBS = [
    ("devices",), ("info", "."), ("verify", "."), ("generate", ".", "the", "-n", "2"), ("chat", "CHAT"), BENCH,
    ("compare", "records.json", "records.json"), ("report", "records.json", "--md"), ("pack", ".", "-o", "OUT"),
    ("eval", ".", "--perplexity", "text.txt"),
    ("design", "--device", "raspberry-pi-4", "-o", "OUT"), ("export", "embedded", "-o", "OUT"),
    ("calibrate", "--device", "raspberry-pi-4", "--probe", "probe.json", "-o", "OUT"),
    ("train", "design.json", "--data", "text.txt", "--steps", "1", "-o", "OUT"),
    pytest.param(("flash", "beside.merino", "--allow-unsigned", "--rootfs", "ROOTFS"), marks=AS_ROOT),
    pytest.param((*BENCH, "--peers", "transformers"), marks=pytest.mark.nightly),
]  # fmt: skip


@pytest.fixture
def hostile(bundle_dirs, tmp_path):
    """A bundle's folder with other inputs in it, and the modules in this folder and beside it."""
    folder = tmp_path / "stranger" / "bundle"
    shutil.copytree(bundle_dirs["portable"], folder)
    write_stories(folder / "text.txt")
    make_packed(folder / "beside.merino")
    (folder / "records.json").write_text(as_json([record(), opt()]))
    (folder / "design.json").write_text(ARCH.model_dump_json())
    (folder / "probe.json").write_text(synthetic(0.02, MACHINE).model_dump_json(by_alias=True))
    made = Hostile(folder)
    made.fill(folder.parent)
    return made


@pytest.fixture
def merino_edge(hostile, tmp_path):
    """A function: runs a verb in that folder by the program that pip would install, or by `python -m`."""
    program = tmp_path / "bin" / "merino-edge"
    program.parent.mkdir()
    program.write_text(PROGRAM)

    def run(words, call=(program,), **options):
        return hostile.run([sys.executable, *call, *words], XDG_CACHE_HOME=str(tmp_path / "cache"), **options)

    return run


@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words[:2]))
def test_no_verb_imports_from_the_current_folder(words, merino_edge, chat_dir, tmp_path):
    places = {"OUT": tmp_path / "out", "CHAT": chat_dir, "ROOTFS": tmp_path / "rootfs"}
    make_root(tmp_path / "rootfs")
    merino_edge([places.get(word, word) for word in words])


def test_python_m_does_not_either(merino_edge):
    merino_edge(["generate", ".", "the", "-n", "2"], call=("-m", "merino_edge"))


def test_pip_is_the_installed_one(merino_edge, tmp_path):
    words = ["pack", ".", "--device", "raspberry-pi-4", "--wheels", "-o", tmp_path / "out"]
    assert "pip finds no set of wheels" in merino_edge(words, code=1, PIP_NO_INDEX="1")


def test_what_libraries_start_does_not(hostile):
    """As torch, tqdm and multiprocessing do, by the environment of a started command line."""
    start = "import subprocess, sys; subprocess.check_call([sys.executable, '-c', 'import numpy'])"
    code = f"import os, sys; sys.path[:] = filter(None, sys.path); import merino_edge.cli.start as s; " \
           f"from merino_edge.cli import app; app.main = lambda: exec({start!r}); s.main()"  # fmt: skip
    hostile.run([sys.executable, "-P", "-c", code])


def test_the_agent_on_a_board_does_not(hostile):
    """In the folder where ssh begins."""
    request = json.dumps({"do": "discard", "paths": []}).encode()
    done = subprocess.run(COMMAND, shell=True, cwd=hostile.folder, input=AGENT + request + b"\n", capture_output=True)
    assert done.stdout.decode().split("\n")[:2] == [agent.BEGIN, "true"] and hostile.imported() == []


def test_every_call_of_python_leaves_the_current_folder_out():
    """`-m` and `-c` put it on the path. A call by the path of a file or zip does not."""
    call = re.compile(r'(sys\.executable|python\([^)]*\)|python|placed\(candidate\)), "-[mc]"|python3 -c ')
    files = (path for top in ("merino_edge", "runtime", "bench", "release", "container", "docs", "examples")
             for path in (ROOT / top).rglob("*.py"))  # fmt: skip
    found = {path.name for path in files if call.search(path.read_text(encoding="utf-8"))}
    assert found == {"import_path.py", "agent.py", "build.py"}  # by words of their own, and by PYTHONSAFEPATH
