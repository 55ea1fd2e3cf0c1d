"""Every command of `merino-edge` where a stream or a disk takes nothing more: an exit code of the contract, one line,
results kept, nothing left behind. Real processes.

Too little memory: test_start.py. The board's verbs: tests/bench/test_bench_faults.py. `design` and `export` before a
closed pipe: test_outputs.py.
"""

import json
import os
import sys

import pytest
from processes import run_bounded
from sample_probe import synthetic
from sample_records import opt, record

from merino_bench.harness.render import as_json
from merino_edge.embedded import FOLDER

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="devices and mounts of Linux")
]  # fmt: skip
CALL = [sys.executable, "-c", "from merino_edge.cli.start import main; main()"]
SMALL = ["--device", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64"]
BLOCK = {"width": 32, "ffn_ratio": 1.0, "depth": 1, "shared": False}
ARCH = {"blocks": [BLOCK], "vocab": 300, "head_size": 32, "context": 64}
STREAMS = {"full": (">/dev/full", True, 1), "pipe": ("", False, 141), "closed": (">&- 2>&-", True, 1)}
TRAIN = ["train", "arch.json", "--data", "text.txt", "--steps", "1", "--batch", "1", "-o"]
PROBE = ["--probe", "probe.json", "--device", "raspberry-pi-5"]
BENCH = ["bench", FOLDER, "-p", "8", "-n", "0", "-r", "1"]
# (command, what it leaves, which streams); those of BY_NIGHT, which compute more, in `make test-nightly`
PRINTS = [
    (["devices"], [], STREAMS), (["recommend", "--device", "raspberry-pi-4", "--json"], [], ["full"]),
    (["design", *SMALL, "-o", "out.json"], ["out.json"], ["closed"]),
    (["pareto", *SMALL, "--points", "2", "-o", "out.json", "--plot", "out.svg"], ["out.json", "out.svg"], STREAMS),
    (["calibrate", *PROBE, "-o", "out.toml"], ["out.toml"], ["full", "closed"]),
    (["report", "records.json", "-o", "out.html", "--md"], ["out.html"], ["full", "closed"]),
    (["compare", "records.json", "records.json"], [], ["pipe"]),
    (["generate", FOLDER, "Once", "-n", "2"], [], STREAMS),
    ([*BENCH, "--save", "out.json"], ["out.json"], ["closed"]),
    (["export", "arch.json", "-o", "out"], ["out"], ["closed"]), ([*TRAIN, "out"], ["out"], ["full"]),
    (["--help"], [], ["full"]), (["fly"], [], ["closed"]),
]  # fmt: skip
WRITES = [
    ["design", *SMALL, "-o", "disk/out/far/away.json"],
    ["pareto", *SMALL, "--points", "2", "--plot", "disk/out.svg"],
    ["report", "records.json", "-o", "disk/out.html"],
    ["calibrate", *PROBE, "-o", "disk/out.toml"],
    ["generate", FOLDER, "Once", "-n", "2", "--cache", "disk/out"], ["export", "arch.json", "-o", "disk/out"],
    [*TRAIN, "disk/out"], ["demo", "-o", "disk/out"],
]  # fmt: skip


BY_NIGHT = ("recommend", "pareto", "train", "export", "calibrate", "demo")
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
        "arch.json": json.dumps(ARCH), "records.json": as_json([record(), opt()]), "text.txt": "".join(lines),
        "probe.json": synthetic(noise=0.02).model_dump_json(by_alias=True),
    }  # fmt: skip


@pytest.fixture
def run(inputs, tmp_path):
    """A function: (words, options of run_bounded) -> exit code, lines of stderr, names of the new files."""
    for name, text in inputs.items():
        (tmp_path / name).write_text(text)

    def run_here(words, **options):
        before = set(os.listdir(tmp_path))
        code, _, err = run_bounded([*CALL, *words], cwd=tmp_path, **options)
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
