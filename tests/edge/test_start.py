"""How command lines begin and end, in real processes: ctrl-C during imports; streams and disks that take nothing more;
the base install without any extra; a current folder with a stranger's modules, which none of them imports.

The board's verbs: tests/bench/test_bench_faults.py. `design` and `export` before a full disk and a closed pipe:
test_outputs.py.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Hostile, run_bounded
from quick_bench import ROOTS
from sample_models import ARCH, write_stories
from sample_probe import MACHINE, synthetic
from sample_records import opt, record
from sample_roots import make_packed, make_root

from merino_bench.harness.render import as_json
from merino_edge.bundles.board_app import write_board_app
from merino_edge.delivery.ssh.command import AGENT, COMMAND
from merino_edge.embedded import FOLDER
from merino_edge.profiles.reading import profile_text
from merino_edge.storage.extras import EXTRA_OF, not_installed
from merino_runtime.delivery import agent

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and signals of Linux")
]  # fmt: skip
ROOT = Path(__file__).parents[2]
CALL = [sys.executable, "-c", "from merino_edge.cli.start import main; main()"]
# Nobody reads the figures of these benchmarks.
QUICK = f"import sys; sys.path += {ROOTS.split(os.pathsep)}; import quick_bench; quick_bench.quicken()\n"
SMALL = ["--board", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64", "--precision", "int8"]
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
        ["devices", profile], ["report", records], ["--help"], ["devices", "\u00e9"],
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


# Python imports sitecustomize in each process, so in children of a command too.
BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(EXTRA_OF)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory):
    """PYTHONPATH for processes that can import no extra."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return str(folder)


@pytest.mark.parametrize(("words", "module", "extra"), [
    (["export", "opt-125m", "--set=weights=random", "-o", "b"], "torch", "export"),
    (["check", "embedded", "--tensorrt", "8.2"], "onnx", "export"),
    (["train", "design.json", "--data", "t.txt", "-o", "o"], "accelerate", "train"),
    (["keygen", "-o", "k"], "cryptography", "delivery"),
    (["flash", "p.merino", "--ssh", "nowhere", "--allow=unsigned"], "asyncssh", "delivery"),
])  # fmt: skip
def test_a_command_that_needs_an_extra_names_it(without_extras, tmp_path, words, module, extra):
    (tmp_path / "t.txt").write_text("The miller counts sacks of flour.\n")
    (tmp_path / "design.json").write_text(ARCH.model_dump_json())
    make_packed(tmp_path / "p.merino")
    code, _, err = run_bounded([*CALL, *words], cwd=tmp_path, PYTHONPATH=without_extras)
    assert code == 1 and "Traceback" not in err, err
    last = err.splitlines()[-1]
    assert f"{module} is not installed" in last and f"-e '.[{extra}]'" in last


def test_a_module_of_no_extra_is_a_fault_of_this_project():
    assert not_installed(ModuleNotFoundError(name="merino_edge.nowhere")) is None


PROGRAM = "import sys\nfrom merino_edge.cli.start import main\nsys.exit(main())\n"
BENCH_HERE = ("bench", ".", "-p", "8", "-n", "0", "-r", "1", "-t", "1")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a board's root")
VERBS = [  # of the base install; by night those that import no more than another of them
    ("devices",), ("recommend", "opt-125m"), ("info", "--check", "."), ("chat", "CHAT"), BENCH_HERE,
    ("report", "records.json", "--board", "raspberry-pi-4", "-o", "PAGE"),
    *(pytest.param(words, marks=pytest.mark.nightly) for words in (
        ("recommend", "--board", "raspberry-pi-4"), ("info", "."), ("generate", ".", "the", "-n", "2"),
        ("compare", "records.json", "records.json"),
    )),
    ("pack", ".", "-o", "OUT"), ("eval", ".", "--perplexity", "text.txt", "--limit", "2"),
    ("design", *SMALL, "-o", "OUT"), ("calibrate", "--board", "raspberry-pi-4", "--probe", "probe.json", "-o", "OUT"),
    pytest.param(("flash", "beside.merino", "--allow=unsigned", "--rootfs", "ROOTFS"), marks=AS_ROOT),
]  # fmt: skip
WITH_EXTRAS = [
    ("train", "design.json", "--data", "text.txt", "--steps", "1", "-o", "OUT"),
    *(pytest.param(words, marks=pytest.mark.nightly) for words in (
        ("export", "embedded", "-o", "OUT"), (*BENCH_HERE, "--peers", "transformers"),
    )),
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

    def run(words, call=(program,), **options):
        program.write_text(QUICK * (words[0] == "bench") + PROGRAM)
        return hostile.run([sys.executable, *call, *words], XDG_CACHE_HOME=str(tmp_path / "cache"), **options)

    return run


@pytest.fixture
def placed(chat_dir, tmp_path):
    """A function: a verb's words -> those with the paths of this test."""
    places = {"OUT": tmp_path / "out", "PAGE": tmp_path / "out.html", "CHAT": chat_dir, "ROOTFS": tmp_path / "rootfs"}
    make_root(tmp_path / "rootfs")
    return lambda words: [places.get(word, word) for word in words]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words[:2]))
def test_a_verb_imports_neither_an_extra_nor_from_the_current_folder(words, merino_edge, placed, without_extras):
    merino_edge(placed(words), PYTHONPATH=without_extras)


@pytest.mark.parametrize("words", WITH_EXTRAS, ids=lambda words: " ".join(words[:2]))
def test_a_verb_with_extras_does_not_either(words, merino_edge, placed):
    merino_edge(placed(words))


def test_python_m_does_not_either(merino_edge):
    merino_edge(["generate", ".", "the", "-n", "2"], call=("-m", "merino_edge"))


def test_pip_is_the_installed_one(merino_edge, tmp_path):
    words = ["pack", ".", "--board", "raspberry-pi-4", "--wheels", "-o", tmp_path / "out"]
    assert "pip finds no set of wheels" in merino_edge(words, code=1, PIP_NO_INDEX="1")


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
    assert found == {"start.py", "build.py"}  # by words of their own, and by PYTHONSAFEPATH


STREAMS = {"full": (">/dev/full", True, 1), "pipe": ("", False, 141), "closed": (">&- 2>&-", True, 1)}
TRAIN = ["train", "arch.json", "--data", "text.txt", "--steps", "1", "--batch", "1", "-o"]
PROBE = ["--probe", "probe.json", "--board", "raspberry-pi-5"]
BENCH = ["bench", FOLDER, "-p", "8", "-n", "0", "-r", "1"]
# (command, what it leaves, which streams); those of BY_NIGHT, which compute more, in `make test-nightly`
PRINTS = [
    (["devices"], [], STREAMS), (["recommend", "--board", "raspberry-pi-4", "--json"], [], ["full"]),
    (["design", *SMALL, "-o", "out.json"], ["out.json"], ["closed"]),
    (["calibrate", *PROBE, "-o", "out.toml"], ["out.toml"], ["full", "closed"]),
    (["report", "records.json"], [], ["full", "closed"]),
    (["compare", "records.json", "records.json"], [], ["pipe"]),
    (["generate", FOLDER, "Once", "-n", "2"], [], STREAMS),
    ([*BENCH, "-o", "out.json"], ["out.json"], ["closed"]),
    (["export", "arch.json", "-o", "out"], ["out"], ["closed"]), ([*TRAIN, "out"], ["out"], ["full"]),
    (["--help"], [], ["full"]), (["fly"], [], ["closed"]),
]  # fmt: skip
WRITES = [
    ["design", *SMALL, "-o", "disk/out/far/away.json"],
    ["report", "records.json", "-o", "disk/out.html"],
    ["calibrate", *PROBE, "-o", "disk/out.toml"],
    ["generate", FOLDER, "Once", "-n", "2", "--cache", "disk/out"], ["export", "arch.json", "-o", "disk/out"],
    [*TRAIN, "disk/out"], ["demo", "disk/out"],
]  # fmt: skip


BY_NIGHT = ("recommend", "train", "export", "calibrate", "demo", "report", "compare")
ALIKE = ("devices, closed", "generate, closed", "generate, full")  # as another command by day


def by_command(*values, words, name):
    """A parameter, marked where the command is one of BY_NIGHT, or it is one of ALIKE."""
    by_night = words[0] in BY_NIGHT or words[0] + name in ALIKE
    return pytest.param(*values, id=f"{words[0]}{name}", marks=pytest.mark.nightly if by_night else ())


@pytest.fixture(scope="module")
def inputs():
    """By name: the texts of the files that the commands read."""
    lines = [f"The miller counts {count} sacks, and the baker buys {count + 1}.\n" for count in range(400)]
    return {
        "arch.json": ARCH.model_dump_json(), "records.json": as_json([record(), opt()]), "text.txt": "".join(lines),
        "probe.json": synthetic(noise=0.02).model_dump_json(by_alias=True),
    }  # fmt: skip


@pytest.fixture
def run(inputs, tmp_path):
    """A function: (words, options of run_bounded) -> exit code, lines of stderr, names of the new files."""
    for name, text in inputs.items():
        (tmp_path / name).write_text(text)

    def run_here(words, **options):
        before = set(os.listdir(tmp_path))
        python, option, code = CALL
        call = [python, option, QUICK * (words[0] == "bench") + code]
        code, _, err = run_bounded([*call, *words], cwd=tmp_path, **options)
        assert "Traceback" not in err and "Exception ignored" not in err, err
        return code, err.splitlines(), sorted(set(os.listdir(tmp_path)) - before)

    return run_here


@pytest.mark.parametrize(
    ("words", "kept", "streams", "reader", "expected"),
    [
        by_command(words, kept, *STREAMS[name], words=words, name=f", {name}")
        for words, kept, names in PRINTS for name in names
    ],
)  # fmt: skip
def test_a_stream_that_takes_nothing(words, kept, streams, reader, expected, run):
    code, lines, result = run(words, streams=streams, reader=reader)
    own = [line for line in lines if line.startswith("merino-edge: ")]
    message = expected == 1 and "2>&-" not in streams
    assert len(own) == message and all("cannot write to stdout: No space left" in line for line in own), lines
    assert code == (2 if words == ["fly"] else expected)
    assert result == kept


@pytest.mark.parametrize("words", [by_command(words, words=words, name=f" {words[-2]}") for words in WRITES])
def test_a_disk_that_takes_nothing(words, no_room, run):
    folder, kind = no_room
    if words[0] == "demo" and kind == "full":
        pytest.skip("its first step writes as `design` does")
    before = os.listdir(folder)
    code, lines, result = run(words)
    (own,) = [line for line in lines if line.startswith("merino-edge: ")]
    reason = {"read-only": "Read-only file system", "full": "No space left on device"}[kind]
    assert code == 1 and "disk/out" in own, lines
    assert reason in own or " free" in own, own
    assert os.listdir(folder) == before and result == []
