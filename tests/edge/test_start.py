"""How the command lines begin: ctrl-C during imports, a terminal of ASCII.

Real processes: what pip makes of the entry points in each setup.cfg, and merino.pyz as it lies in a bundle.
"""

import configparser
import sys
from pathlib import Path

import pytest
from processes import run_bounded
from sample_records import opt, record

from merino_bench.harness.render import as_json
from merino_edge.bundles.board_app import write_board_app
from merino_edge.profiles.reading import profile_text

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and signals of Linux")
]  # fmt: skip
ROOT = Path(__file__).parents[2]
# Runs a file with a signal to itself when the named module is about to be imported.
INTERRUPTED = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
wanted, sys.argv[:] = sys.argv[1], sys.argv[2:]
sys.meta_path.insert(0, Interrupt())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Files to run by name: merino.pyz, and the two entry points."""
    folder = tmp_path_factory.mktemp("programs")
    lines = []
    for project in (".", "release/merino-runtime"):
        setup = configparser.ConfigParser()
        setup.read(ROOT / project / "setup.cfg")
        lines += setup["options.entry_points"]["console_scripts"].split("\n")
    results = {}
    for name, entry in (line.split(" = ") for line in lines if line):
        module, function = entry.split(":")
        results[name] = folder / f"{name}.py"
        results[name].write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    write_board_app(folder / "merino.pyz")
    return {**results, "merino.pyz": folder / "merino.pyz"}


@pytest.mark.parametrize(("program", "module", "verb"), [
    ("merino-edge", "typer", "--version"), ("merino-edge", "merino_edge.cli.app", "--version"),
    ("merino-edge", "merino_edge.design.budgets", "--version"), ("merino-edge", "pydantic", "devices"),
    ("merino", "argparse", "--version"), ("merino", "merino_bench.__main__", "--version"),
    ("merino.pyz", "merino_runtime.io.json_file", "--version"), ("merino.pyz", "merino_runtime.sampling", "--version"),
])  # fmt: skip
def test_ctrl_c_during_the_imports_is_exit_130_without_a_word(programs, program, module, verb):
    code, out, err = run_bounded([sys.executable, "-c", INTERRUPTED, module, programs[program], verb])
    assert (code, out) == (130, b"") and err.strip() == ""


@pytest.mark.parametrize(
    ("program", "module"), [("merino-edge", "merino_edge.cli.app"), ("merino", "merino_bench.__main__")]
)
def test_an_interrupt_that_is_switched_off_stays_so(programs, program, module):
    call = [sys.executable, "-c", INTERRUPTED, module, programs[program], "--version"]
    code, out, _ = run_bounded(call, ignore_interrupts=True)
    assert code == 0 and out.startswith(program.encode())


ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize("variables", [
    pytest.param(ASCII[0], id="by PYTHONIOENCODING"),
    pytest.param(ASCII[1], id="by the C locale", marks=pytest.mark.nightly),
])  # fmt: skip
def test_characters_that_stdout_lacks_are_spelled_out(programs, tmp_path, variables):
    profile, records = tmp_path / "mine.toml", tmp_path / "records.json"
    name = 'name = "[/home/\u00e9] \u65e5\u672c Raspberry'
    profile.write_text(profile_text("raspberry-pi-4").replace('name = "Raspberry', name, 1), encoding="utf-8")
    rows = [record(bundle="\u00fcnser", ratio_to_baseline=5.0, baseline="opt-350m fp32"), opt()]
    records.write_text(as_json(rows), encoding="utf-8")
    shown = b""
    for arguments in (
        ["devices", profile], ["devices", profile, "--json"], ["report", records, "--md"], ["--help"],
        ["compare", records, records], ["design", "--device", profile], ["devices", "\u00e9"],
    ):  # fmt: skip
        code, out, err = run_bounded([sys.executable, programs["merino-edge"], *arguments], **variables)
        assert "Traceback" not in err and code == (1 if arguments[-1] == "\u00e9" else 0), err
        assert out.isascii()
        shown += out
    assert b"[/home/\\xe9] \\u65e5\\u672c Raspberry" in shown and b"\\xfcnser" in shown


@pytest.mark.parametrize("module", ["merino_edge", "merino_bench", "merino_bench.start", "merino_edge.cli.start"])
def test_python_m_runs_a_command_line(module):
    code, out, err = run_bounded([sys.executable, "-m", module, "--version"])
    assert (code, err) == (0, "") and out.startswith(b"merino")


def test_what_was_loaded_is_not_searched_for_cycles_at_the_end():
    """It took a second and more of `merino-edge export`."""
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); import merino_edge.cli.app"
    status, out, err = run_bounded([sys.executable, "-c", code])
    assert (status, err) == (0, "") and int(out) > 10_000
