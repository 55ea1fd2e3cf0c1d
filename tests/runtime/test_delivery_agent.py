"""The agent, run as ssh runs it: its own text on stdin of a Python that has nothing of this project."""
import hashlib
import json
import os
import subprocess
import sys

import pytest

from merino_runtime.delivery import agent

with open(agent.__file__, "rb") as _file:
    TEXT = _file.read()
LOADER = f"import sys;exec(sys.stdin.buffer.read({len(TEXT)}))"
DATA = bytes(range(256)) * 5000


def agent_output(home, request, data=b""):
    """(exit code, the lines of stdout, stderr)"""
    process = subprocess.Popen([sys.executable, "-IS", "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, cwd=str(home),
                               env={"HOME": str(home), "PATH": os.environ["PATH"], "LC_ALL": "C"})
    data = TEXT + json.dumps(request).encode("ascii") + b"\n" + data
    if request["do"] == "run":  # the connection stays: its end would end the program
        process.stdin.write(data)
        process.stdin.flush()
        process.wait(60)
        data = b""
    out, err = process.communicate(data, timeout=60)
    lines = out.decode("utf-8").splitlines()
    assert lines[0] == agent.BEGIN
    return process.returncode, lines[1:], err.decode("utf-8")


def receive(home, data, offset=0, **changes):
    request = dict({"do": "receive", "folder": "@cache/incoming", "name": "model", "size": len(DATA),
                    "sha256": hashlib.sha256(DATA).hexdigest()}, **changes)
    code, lines, _ = agent_output(home, request, b'{"offset": %d}\n' % offset + data)
    return code, [json.loads(line) for line in lines]


@pytest.fixture
def place(tmp_path):
    return tmp_path / ".cache" / "merino" / "incoming"


def test_a_file_is_received_and_known_again(tmp_path, place):
    code, (result, end) = receive(tmp_path, DATA)
    assert (code, result["done"], result["part_bytes"], end) == (0, False, 0, {"error": ""})
    assert (place / "model").read_bytes() == DATA and os.listdir(str(place)) == ["model"]
    assert os.stat(str(place)).st_mode & 0o777 == 0o700
    code, (result,) = receive(tmp_path, b"")
    assert (code, result["done"]) == (0, True)


@pytest.mark.parametrize("arrived", [0, 1, len(DATA) // 2, len(DATA) - 1])
def test_a_part_stays_where_the_connection_ends_and_goes_on(tmp_path, place, arrived):
    code, (_, end) = receive(tmp_path, DATA[:arrived])
    assert code == 1 and "connection ended" in end["error"]
    assert (place / "model.part").read_bytes() == DATA[:arrived] and not (place / "model").exists()
    code, (result, end) = receive(tmp_path, DATA[arrived:], arrived)
    assert result["part_bytes"] == arrived
    assert result["part_sha256"] == hashlib.sha256(DATA[:arrived]).hexdigest()
    assert (code, end) == (0, {"error": ""})
    assert (place / "model").read_bytes() == DATA


def test_other_bytes_never_take_the_files_place(tmp_path, place):
    code, (_, end) = receive(tmp_path, DATA[:-1] + b"#")
    assert code == 1 and "others than those" in end["error"]
    assert os.listdir(str(place)) == []


def test_a_file_that_another_connection_writes_is_left_alone(tmp_path, place):
    fcntl = pytest.importorskip("fcntl")
    place.mkdir(parents=True)
    with (place / "model.part").open("wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        assert receive(tmp_path, DATA) == (1, [{"busy": True}])


def test_a_program_runs_with_what_it_is_given_and_its_code_comes_back(tmp_path):
    program = "import sys; data = sys.stdin.buffer.read(); print(len(data), sys.argv[1:]); sys.exit(7)"
    arguments = [agent.PYTHON, "-c", program, "@cache/x", "@other"]
    code, lines, _ = agent_output(tmp_path, {"do": "run", "arguments": arguments, "stdin_bytes": 3}, b"abc")
    assert (code, lines) == (7, [f"3 ['{tmp_path}/.cache/merino/x', '@other']"])
    code, lines, err = agent_output(tmp_path, {"do": "run", "arguments": ["/no/program"], "stdin_bytes": 0})
    assert (code, lines) == (127, []) and "No such file" in err


def test_only_files_that_are_named_are_removed(tmp_path, place):
    place.mkdir(parents=True)
    for name in ("a", "b"):
        (place / name).write_bytes(b"x")
    request = {"do": "discard", "paths": ["@cache/incoming/a", "@cache/incoming/none"]}
    assert agent_output(tmp_path, request)[:2] == (0, ["true"])
    assert os.listdir(str(place)) == ["b"]
