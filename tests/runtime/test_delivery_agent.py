"""The agent, run as ssh runs it: its own text on stdin of a Python that has nothing of this project."""
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from merino_runtime.delivery import agent, keys, releases, service, units
from merino_runtime.delivery.archive import SIGNATURE

with open(agent.__file__, "rb") as _file:
    TEXT = _file.read()
LOADER = f"import sys;exec(sys.stdin.buffer.read({len(TEXT)}))"
DATA = bytes(range(256)) * 5000
PIECE = 1 << 18


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
                    "sha256": hashlib.sha256(DATA).hexdigest(), "piece": PIECE}, **changes)
    code, lines, _ = agent_output(home, request, b'{"offset": %d}\n' % offset + data)
    return code, [json.loads(line) for line in lines]


@pytest.fixture
def place(tmp_path):
    return tmp_path / ".cache" / "merino" / "incoming"


def test_a_file_is_received_and_known_again(tmp_path, place):
    code, (result, end) = receive(tmp_path, DATA)
    assert (code, result["done"], result["pieces"], end) == (0, False, [], {"error": ""})
    assert (place / "model").read_bytes() == DATA and os.listdir(str(place)) == ["model"]
    assert os.stat(str(place)).st_mode & 0o777 == 0o700
    code, (result,) = receive(tmp_path, b"")
    assert (code, result["done"]) == (0, True)


@pytest.mark.parametrize("arrived", [0, 1, PIECE - 1, PIECE, 2 * PIECE + 5, len(DATA) - 1])
def test_a_part_stays_where_the_connection_ends_and_goes_on(tmp_path, place, arrived):
    code, (_, end) = receive(tmp_path, DATA[:arrived])
    assert code == 1 and "connection ended" in end["error"]
    assert (place / "model.part").read_bytes() == DATA[:arrived] and not (place / "model").exists()
    whole = arrived // PIECE
    code, (result, end) = receive(tmp_path, DATA[whole * PIECE:], whole * PIECE)
    assert result["pieces"] == [hashlib.sha256(DATA[at * PIECE:(at + 1) * PIECE]).hexdigest() for at in range(whole)]
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


APP = b"import sys\nprint(sys.argv[1:])\nsys.exit(int(sys.argv[2]))\n"


def description(home, root, *codes):
    request = {"do": "describe", "app_bytes": len(APP), "root": root and str(root), "timeout_s": 30,
               "calls": [["x", str(code)] for code in codes]}
    code, (line,), _ = agent_output(home, request, APP)
    assert code == 0
    return json.loads(line)


def test_a_description_leaves_nothing_behind(tmp_path):
    result = description(tmp_path, tmp_path / "root", 0, 3)
    root = str(tmp_path / "root")
    assert [(call["code"], call["out"]) for call in result.pop("calls")] == [
        (code, "{}\n".format(["x", str(code), "--root", root])) for code in (0, 3)]
    assert (result["root"], result["app"], result["keys"]) == (root, None, [])
    assert os.listdir(str(tmp_path)) == []


def test_the_installed_application_answers_where_it_runs(tmp_path):
    """That of the release in use, else the service's copy, else the one that is sent."""
    root = tmp_path / "root"
    (root / "current").mkdir(parents=True)
    current, kept = (str(root / name) for name in agent.INSTALLED_APPS)
    for app, kept_app, answered in (("print({})", "print({})", current), ("syntax error", "print({})", kept),
                                    ("", "print({})", kept), ("print({})", "", current), ("", "", None)):
        for path, text in ((current, app), (kept, kept_app)):
            with open(path, "w") as file:
                file.write(text)
        result = description(tmp_path, root, 0)
        assert result["app"] == answered and result["calls"][0]["out"].startswith("{" if answered else "[")


def test_an_application_whose_key_was_withdrawn_is_not_run(tmp_path):
    root, gone = tmp_path / "root", keys.key_base64(b"k" * 32)
    apps = [root / name for name in agent.INSTALLED_APPS]
    for app in apps:
        app.parent.mkdir(parents=True, exist_ok=True)
        app.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({app.parent.name!r}); print({{}})")
    (root / "trusted").mkdir()
    (root / "trusted" / "a.pub").write_text(f"merino-ed25519 {gone} me\n")
    description(tmp_path, root, 0)
    assert (tmp_path / "ran").read_text() == "current", "the sign that an application would be seen"
    (root / "withdrawn.json").write_text(json.dumps({"schema": 1, "keys": [gone]}))
    for count, app in enumerate(apps):
        (tmp_path / "ran").write_text("")
        (app.parent / "manifest.sig").write_text(json.dumps({"algorithm": "ed25519", "key": gone, "signature": "x"}))
        result = description(tmp_path, root, 0)
        rest = apps[count + 1:]
        assert result["app"] == (str(rest[0]) if rest else None) and result["keys"] == []
        assert (tmp_path / "ran").read_text() == (rest[0].parent.name if rest else "")
    for app in apps:
        (app.parent / "manifest.sig").unlink()
    (root / "withdrawn.json").write_text("{")  # which install refuses
    assert description(tmp_path, root, 0)["app"] is None


def give_to_other_user(path):
    os.chown(str(path), 65534, 65534)


def open_to_all(path):
    os.chmod(str(path), 0o777)


@pytest.mark.parametrize("place", [".", "releases", "releases/one", "releases/one/merino.pyz"])
@pytest.mark.parametrize("change", [give_to_other_user, open_to_all])
def test_an_application_that_another_user_can_change_is_not_run(change, place, tmp_path):
    if change is give_to_other_user and os.geteuid():
        pytest.skip("only root gives files away")
    root = tmp_path / "root"
    (root / "releases" / "one").mkdir(parents=True)
    (root / "releases" / "one" / "merino.pyz").write_text("print({})")
    (root / "merino.pyz").write_text("print({})")
    os.symlink("releases/one", str(root / "current"))
    assert description(tmp_path, root, 0)["app"] == str(root / "current" / "merino.pyz")
    change(root / place)
    result = description(tmp_path, root, 0)
    assert (result["app"], result["foreign"]) == (None, os.path.normpath(str(root / place)))
    assert result["calls"][0]["out"].startswith("['x'"), "the one that was sent"


def test_keys_are_read_from_whatever_lies_there(tmp_path):
    trusted = tmp_path / "root" / "trusted"
    trusted.mkdir(parents=True)
    for name, data in (("a.pub", b"merino-ed25519 AAAA me\n"), ("b.pub", b"\xff\xfe"), ("c.pub", b"one"),
                       ("d.txt", b"merino-ed25519 BBBB"), ("e.pub", b"x CCCC " + b"c" * 9000)):
        (trusted / name).write_bytes(data)
    (trusted / "f.pub").mkdir()
    os.symlink("f.pub/none", str(trusted / "g.pub"))
    assert description(tmp_path, tmp_path / "root", 0)["keys"] == ["AAAA", "CCCC"]


def test_the_agent_and_the_installer_mean_the_same_places():
    """The agent imports nothing of this project, so what it shares with the installer is written twice."""
    assert agent.SYSTEM_ROOT == releases.SYSTEM_ROOT and agent.SYSTEM_KEYS == keys.SYSTEM_FOLDER
    assert f"{releases.CURRENT}/{releases.APP}" in agent.INSTALLED_APPS
    assert (agent.WITHDRAWN, agent.SIGNATURE) == (keys.WITHDRAWN, SIGNATURE)
    assert agent.default_root() == releases.default_root()
    assert os.path.split(agent.SERVICE_UNIT) == (service.UNITS, units.UNIT)
    assert re.search(agent.SERVICE_ROOT, units.service_unit("/srv/merino"), re.MULTILINE).group(1) == "/srv/merino"


def test_a_python_is_found_by_its_modules(tmp_path):
    for candidates, modules, result in ((["/no/python", agent.PYTHON], ["json", "os"], agent.PYTHON),
                                       ([agent.PYTHON], ["json", "no_such_module"], None)):
        request = {"do": "find_python", "candidates": candidates, "modules": modules}
        assert agent_output(tmp_path, request)[1] == [json.dumps(result)]


def test_only_files_that_are_named_are_removed(tmp_path, place):
    place.mkdir(parents=True)
    for name in ("a", "b"):
        (place / name).write_bytes(b"x")
    request = {"do": "discard", "paths": ["@cache/incoming/a", "@cache/incoming/none"]}
    assert agent_output(tmp_path, request)[:2] == (0, ["true"])
    assert os.listdir(str(place)) == ["b"]
