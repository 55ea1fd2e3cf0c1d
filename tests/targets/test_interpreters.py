"""The trained model's bundles, and the board side's own tests, under the Pythons and ONNX Runtimes of boards.

`make test` sets the environments up where there are such Pythons (tests/targets/pythons), and runs the oldest and this
one; `make test-nightly` runs all. 3.6 with ONNX Runtime 1.10 is that of a Jetson Nano, where only `portable` bundles
run; 3.8 has 1.19, whose fused attention needs care (docs/decisions/export.md), so there those tests of the models run.
By day 3.6 runs what is not slow, with the TensorRT of the board that has it, but not what no Python changes. Properties
are tried on few examples there. Other CPUs: test_boards.py.
"""
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest

from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.generation.text import open_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LOGITS = ROOT / "tests" / "targets" / "boards" / "logits.py"
README = ROOT / "merino_edge" / "embedded" / "README.md"
PORTABLE = [("portable", "fp32"), ("portable", "int8"), ("portable", "int4")]
ALL = [("fused", "fp32"), ("fused", "int8"), ("fused", "int4"), *PORTABLE]


class Interpreter(NamedTuple):
    python: Path
    onnxruntime: str
    runs: list  # (dialect, precision) of the bundles that it takes; the others must be refused


INTERPRETERS = {
    "3.6": Interpreter(ROOT / ".venv36" / "bin" / "python", "1.10.0", PORTABLE),
    "3.8": Interpreter(ROOT / ".venv38" / "bin" / "python", "1.19.2", ALL),
    "3.10": Interpreter(ROOT / ".venv310" / "bin" / "python", "1.23.2", ALL),
    "this": Interpreter(Path(sys.executable), onnxruntime.__version__, ALL),
}
PAIRS = [(version, *kind) for version in INTERPRETERS for kind in ALL]
RUN = [pair for pair in PAIRS if pair[1:] in INTERPRETERS[pair[0]].runs]


def marked(pairs):
    """As parameters: pairs of the Pythons between the oldest and this one are for the nightly run."""
    return [pytest.param(*pair, marks=pytest.mark.nightly if pair[0] in ("3.8", "3.10") else ()) for pair in pairs]


def python_of(version):
    interpreter = INTERPRETERS[version]
    if not interpreter.python.exists():
        pytest.skip(f"no Python {version} on this machine (make test sets it up where there is one)")
    return interpreter.python


def run(*call, cwd=None):
    done = subprocess.run([str(word) for word in call], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def greedy_ids(python, bundle):
    arguments = ["Once upon a time", "-n", "24", "--temperature", "0", "--set=ignore_eos=true", "--json"]
    done = run(python, "merino.pyz", "generate", ".", *arguments, cwd=bundle)
    assert done.returncode == 0, done.stderr
    *tokens, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert last["done"] and last["tokens"] == len(tokens) == 24
    return [token["id"] for token in tokens]


@pytest.fixture(scope="module")
def ids_here(embedded_bundles):
    """A function: (dialect, precision) -> the ids of this interpreter."""
    return functools.cache(lambda *kind: greedy_ids(sys.executable, embedded_bundles[kind]))


@pytest.mark.parametrize(("version", "dialect", "precision"), marked(pair for pair in RUN if pair[0] != "this"))
def test_the_selftest_passes_and_the_story_is_the_same(version, dialect, precision, embedded_bundles, ids_here):
    python, bundle = python_of(version), embedded_bundles[dialect, precision]
    done = run(python, "merino.pyz", "selftest", ".", cwd=bundle)
    assert (done.returncode, done.stdout) == (0, "ok: 16 greedy ids as expected\n"), done.stderr
    # Versions differ in the last digits, which rounded activations may turn into another token later.
    same = 24 if precision == "fp32" else 8
    assert greedy_ids(python, bundle)[:same] == ids_here(dialect, precision)[:same]


@pytest.mark.parametrize(("version", "dialect", "precision"), marked(sorted(set(PAIRS) - set(RUN))))
@pytest.mark.parametrize("verb", [["generate", ".", "Once upon a time"], ["selftest", "."]])
def test_what_needs_a_newer_runtime_is_refused_and_says_which(version, dialect, precision, verb, embedded_bundles):
    python = python_of(version)
    done = run(python, "merino.pyz", *verb, cwd=embedded_bundles[dialect, precision])
    printed = done.stderr
    assert done.returncode == 1 and done.stdout == ""
    assert f"onnxruntime is {INTERPRETERS[version].onnxruntime}, bundle 'embedded' (dialect {dialect}) needs" in printed
    assert "needs 1.18 or later" in printed
    assert "pip install" in printed and "--dialect portable" in printed


@pytest.fixture(scope="module")
def story(embedded_bundles):
    """Ids of real text, longer than one piece of a prefill."""
    text = README.read_text().split("Greedy, after")[1].replace("\n> ", " ")
    ids = open_tokenizer(load_bundle(str(embedded_bundles["fused", "fp32"]))).encode(text)
    return (ids * 3)[:300]


# What the cache shares with a prompt is kept, except that before 1.20 a fused cache is only where it is at least half.
STEPS = [
    ("prompt", 20, 20), ("step", 21, 1), ("step", 22, 1), ("prompt", 40, 18), ("truncate", 8, None),
    ("prompt", 30, 22), ("step", 31, 1), ("prompt", 300, 269), ("truncate", 290, None), ("prompt", 300, 10),
]  # fmt: skip
STEPS_BEFORE_1_20 = [*STEPS[:5], ("prompt", 30, 30), STEPS[6], ("prompt", 300, 300), *STEPS[8:]]


def play(python, bundle, ids, steps, out, *code):
    """The steps as logits.py takes them -> (its report, logits [prompts and steps, vocab])."""
    arguments = {"prompt": lambda end: ids[:end], "step": lambda end: ids[end - 1], "truncate": lambda end: end}
    requests = json.dumps([(verb, arguments[verb](end)) for verb, end, _ in steps])
    call = [python, *(code or [LOGITS]), bundle, requests, out]
    environment = {
        "PYTHONPATH": str(bundle / "merino.pyz"), "OMP_NUM_THREADS": "1",
        "GLIBC_TUNABLES": os.environ["GLIBC_TUNABLES"],
    }  # fmt: skip
    done = subprocess.run([str(word) for word in call], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), np.load(out)


@pytest.fixture(scope="module")
def expected(embedded_bundles, story):
    """By kind: the logits after each beginning that STEPS asks for, each from an empty cache, on this machine."""
    arrays = {}
    for kind, folder in embedded_bundles.items():
        backend, rows = open_backend(load_bundle(str(folder))), []
        for end in [end for verb, end, _ in STEPS if verb != "truncate"]:
            backend.truncate(0)
            rows.append(backend.prefill(story[:end]).copy())
        backend.close()
        arrays[kind] = np.array(rows)
    return arrays


@pytest.mark.parametrize(("version", "dialect", "precision"), marked(RUN))
def test_a_prompt_goes_on_from_what_the_cache_holds(
    version, dialect, precision, embedded_bundles, story, expected, assert_same_choices, tmp_path
):
    """With the beginning shared, cut, and longer than a piece: the logits are those of an empty cache."""
    python, bundle = python_of(version), embedded_bundles[dialect, precision]
    steps = STEPS_BEFORE_1_20 if (version, dialect) == ("3.8", "fused") else STEPS
    report, logits = play(python, bundle, story, steps, tmp_path / "logits.npy")
    assert report["onnxruntime"] == INTERPRETERS[version].onnxruntime
    assert version == "this" or report["python"].startswith(version + ".")
    assert report["computed"] == [count for _, _, count in steps if count]
    assert report["ids"] == story
    assert_same_choices(logits, expected[dialect, precision], precision)


# Of no board with 3.6; of many forged files; of pure arithmetic; of the tests' own GPU; of refusals and faults that are
# tried one by one, most in processes of their own; of the grammars of constrained answers and of packed files; of the
# server all but a stream.
NOT_BY_DAY = (
    "not (10.3.0 or (test_serving.py and not whole_answer)"
    " or hostile or covers_the_truth or their_distribution or misuse or constraints"
    " or delivery_packed or cannot_be or without_a_package or memory_ends or opens_no_connection"
    " or writes_nothing or killed or damage or fails_at_any_call)"
)
WORKSTATIONS = ("test_probe_graphs.py",)  # needs torch


def test_what_is_not_slow_passes_under_the_oldest_python(bundle_dirs, chat_dir, tmp_path):
    check_board_side("3.6", ["runtime/test_*.py", "bench/test_*.py"], "not slow and not nightly", ["portable"],
                     bundle_dirs, chat_dir, tmp_path, NOT_BY_DAY)  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(("version", "which", "marks", "dialects"), [
    ("3.6", "runtime/test_*.py", "", ["portable"]), ("3.6", "bench/test_*.py", "", ["portable"]),
    ("3.8", "runtime/test_runtime_*.py", "", ["fused", "portable"]),
])  # fmt: skip
def test_the_board_side_passes_its_tests(version, which, marks, dialects, bundle_dirs, chat_dir, tmp_path):
    check_board_side(version, [which], marks, dialects, bundle_dirs, chat_dir, tmp_path)


def check_board_side(version, patterns, marks, dialects, bundle_dirs, chat_dir, tmp_path, names=""):
    """The tests of these files, marks and names pass under this Python, on copies of these bundles."""
    python = ROOT / f".venv{version.replace('.', '')}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no Python {version} on this machine (make test sets it up where there is one)")
    paths = (path for pattern in patterns for path in sorted((ROOT / "tests").glob(pattern)))
    files = [path for path in paths if path.name not in WORKSTATIONS]
    assert files
    for dialect in dialects:
        shutil.copytree(bundle_dirs[dialect], tmp_path / dialect)
    shutil.copytree(chat_dir, tmp_path / "chat")
    environment = {**os.environ, "MERINO_TEST_BUNDLE": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=fast", "-m", marks, "-k", names,
         *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
