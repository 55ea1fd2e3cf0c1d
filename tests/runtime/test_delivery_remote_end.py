"""The board's end of a connection, run as ssh runs it: its own text on stdin of a Python that has nothing of ours."""
import hashlib
import json
import os
import subprocess
import sys

import pytest

from merino_runtime.delivery import remote_end

with open(remote_end.__file__, "rb") as _file:
    TEXT = _file.read()
LOADER = f"import sys;exec(sys.stdin.buffer.read({len(TEXT)}))"
DATA = bytes(range(256)) * 5000
PIECE = 1 << 18


def asked(home, request, data=b""):
    """(exit code, the lines of the answer, stderr)"""
    process = subprocess.Popen([sys.executable, "-S", "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
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
    assert lines[0] == remote_end.BEGIN
    return process.returncode, lines[1:], err.decode("utf-8")


def receive(home, data, offset=0, **changes):
    request = dict({"do": "receive", "folder": "@cache/incoming", "name": "model", "size": len(DATA),
                    "sha256": hashlib.sha256(DATA).hexdigest(), "piece": PIECE}, **changes)
    code, lines, _ = asked(home, request, b'{"offset": %d}\n' % offset + data)
    return code, [json.loads(line) for line in lines]


@pytest.fixture
def place(tmp_path):
    return tmp_path / ".cache" / "merino" / "incoming"


def test_a_file_is_received_and_known_again(tmp_path, place):
    code, (found, end) = receive(tmp_path, DATA)
    assert (code, found["done"], found["pieces"], end) == (0, False, [], {"error": ""})
    assert (place / "model").read_bytes() == DATA and os.listdir(str(place)) == ["model"]
    assert os.stat(str(place)).st_mode & 0o777 == 0o700
    code, (found,) = receive(tmp_path, b"")
    assert (code, found["done"]) == (0, True)


@pytest.mark.parametrize("arrived", [0, 1, PIECE - 1, PIECE, 2 * PIECE + 5, len(DATA) - 1])
def test_a_part_stays_where_the_connection_ends_and_goes_on(tmp_path, place, arrived):
    code, (_, end) = receive(tmp_path, DATA[:arrived])
    assert code == 1 and "connection ended" in end["error"]
    assert (place / "model.part").read_bytes() == DATA[:arrived] and not (place / "model").exists()
    whole = arrived // PIECE
    code, (found, end) = receive(tmp_path, DATA[whole * PIECE:], whole * PIECE)
    assert found["pieces"] == [hashlib.sha256(DATA[at * PIECE:(at + 1) * PIECE]).hexdigest() for at in range(whole)]
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
    arguments = [remote_end.PYTHON, "-c", program, "@cache/x", "@other"]
    code, lines, _ = asked(tmp_path, {"do": "run", "arguments": arguments, "stdin_bytes": 3}, b"abc")
    assert (code, lines) == (7, [f"3 ['{tmp_path}/.cache/merino/x', '@other']"])
    code, lines, err = asked(tmp_path, {"do": "run", "arguments": ["/no/program"], "stdin_bytes": 0})
    assert (code, lines) == (127, []) and "No such file" in err


def test_a_program_is_talked_with_line_by_line_and_ends_with_the_connection(tmp_path):
    echo = "import sys\nfor line in sys.stdin:\n    print(line.strip()[::-1], flush=True)\nsys.exit(3)"
    request = {"do": "talk", "arguments": ["@python", "-c", echo]}
    process = subprocess.Popen([sys.executable, "-S", "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               cwd=str(tmp_path), env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    process.stdin.write(TEXT + json.dumps(request).encode("ascii") + b"\n")
    process.stdin.flush()
    assert process.stdout.readline().decode("ascii").strip() == remote_end.BEGIN
    for word in (b"one", b"two"):  # each answer comes before the next line is sent
        process.stdin.write(word + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == word[::-1] + b"\n"
    process.stdin.close()
    assert process.wait(60) == 3
    process.stdout.close()
    code, lines, err = asked(tmp_path, {"do": "talk", "arguments": ["/no/program"]})
    assert (code, lines) == (127, []) and "cannot run /no/program: No such file" in err


def test_questions_leave_nothing_behind(tmp_path):
    app = b"import sys\nprint(sys.argv[1])\nsys.exit(int(sys.argv[2]))\n"
    request = {"do": "ask", "app_bytes": len(app), "calls": [["a", "0"], ["b", "3"]], "timeout_s": 30}
    code, (line,), _ = asked(tmp_path, request, app)
    assert code == 0
    assert [(one["code"], one["out"]) for one in json.loads(line)] == [(0, "a\n"), (3, "b\n")]
    assert os.listdir(str(tmp_path)) == []


def test_a_python_is_found_by_its_modules(tmp_path):
    for candidates, modules, found in ((["/no/python", remote_end.PYTHON], ["json", "os"], remote_end.PYTHON),
                                       ([remote_end.PYTHON], ["json", "no_such_module"], None)):
        request = {"do": "find_python", "candidates": candidates, "modules": modules}
        assert asked(tmp_path, request)[1] == [json.dumps(found)]


def test_only_files_that_are_named_are_removed(tmp_path, place):
    place.mkdir(parents=True)
    for name in ("a", "b"):
        (place / name).write_bytes(b"x")
    request = {"do": "discard", "paths": ["@cache/incoming/a", "@cache/incoming/none"]}
    assert asked(tmp_path, request)[:2] == (0, ["true"])
    assert os.listdir(str(place)) == ["b"]
