"""Bundles of a stranger: weights outside of what bundle.json lists are not read, and a native library is not loaded."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import quick_bench
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from merino_bench.__main__ import main
from merino_runtime.bundle.fit import library_file
from merino_runtime.bundle.verified import INNER, external_files
from merino_runtime.errors import MerinoError
from tests.packed_files import app_bytes, bundle_files, packed_bytes
from tests.served import Server

ROOT = Path(__file__).parents[2]
WEIGHTS = "model.onnx.data"
PYTHONS = ["", ".venv36", ".venv38", ".venv310"]  # ONNX Runtime 1.32 or what is installed, 1.10, 1.19, 1.23


@pytest.fixture
def folder(bundle_dirs, tmp_path):
    return Path(shutil.copytree(bundle_dirs["portable"], tmp_path / "inside" / "bundle"))


def renamed_weights(folder, location, keep_listed=False):
    """The same graph with its weights at `location`. bundle.json has its new hash and does not list the old file."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    description = json.loads((folder / "bundle.json").read_text())
    files = [file for file in description["files"] if keep_listed or file["path"] != WEIGHTS]
    for file in files:
        content = (folder / file["path"]).read_bytes()
        file.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (folder / "bundle.json").write_text(json.dumps(dict(description, files=files)))


def outside(folder):
    renamed_weights(folder, "../secret")
    shutil.move(folder / WEIGHTS, folder.parent / "secret")


def absolute(folder):
    secret = folder.parent / "secret"
    renamed_weights(folder, str(secret))
    shutil.move(folder / WEIGHTS, secret)


def linked(folder):
    renamed_weights(folder, "weights")
    shutil.move(folder / WEIGHTS, folder.parent / "secret")
    (folder / "weights").symlink_to("../secret")


def pipe(folder):
    renamed_weights(folder, "weights")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / "weights")


def unlisted(folder):
    renamed_weights(folder, "weights")
    shutil.move(folder / WEIGHTS, folder / "weights")


def unlisted_beside_listed(folder):
    renamed_weights(folder, "weights", keep_listed=True)
    shutil.copy(folder / WEIGHTS, folder / "weights")


def listed_link(folder):
    shutil.move(folder / WEIGHTS, folder.parent / "secret")
    (folder / WEIGHTS).symlink_to("../secret")


def listed_pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def changed(folder):
    """Of the same size, with the times of the file that was hashed."""
    path = folder / WEIGHTS
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


NOT_LISTED = "which bundle.json does not list"
ATTACKS = {
    outside: NOT_LISTED, absolute: NOT_LISTED, linked: NOT_LISTED, pipe: NOT_LISTED, unlisted: NOT_LISTED,
    unlisted_beside_listed: NOT_LISTED, listed_link: "is a link out of the folder", listed_pipe: "is no regular file",
    changed: "model.onnx.data has sha256",
}  # fmt: skip


def run(python, tmp_path, *words):
    """(exit code, stdout and stderr) of a command of the board, under the interpreter of a virtual environment."""
    interpreter = ROOT / python / "bin" / "python" if python else Path(sys.executable)
    if not interpreter.exists():
        pytest.skip(f"no {python} on this machine (make test sets it up)")
    variables = {
        **os.environ, "PYTHONPATH": str(ROOT / "runtime"), "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    done = subprocess.run([interpreter, "-m", "merino_bench", *map(str, words)], capture_output=True, text=True,
                          env=variables, timeout=120, check=False)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def here(capfd, monkeypatch, tmp_path):
    """A function: the same of a command in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_here(*words):
        capfd.readouterr()
        return main([str(word) for word in words]), "".join(capfd.readouterr())

    return run_here


@pytest.mark.usefixtures("quick_benchmarks")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_verb_reads_weights_that_are_not_listed_as_they_are(attack, folder, here):
    if attack is changed:  # after a run that hashed the files
        for path in folder.iterdir():
            os.utime(path, (1_000_000_000, 1_000_000_000))
        assert here("selftest", folder)[0] == 0
    attack(folder)
    verbs = [("selftest", folder), ("generate", folder, "hello"), ("bench", folder), ("info", "--check", folder)]
    for words in verbs:
        code, output = here(*words)
        assert code == 1 and ATTACKS[attack] in output, (words, output)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "python"), [
    pytest.param(attack, python, marks=() if (attack, python) == (outside, PYTHONS[1]) else pytest.mark.nightly,
                 id=f"{attack.__name__}{python}")
    for attack in ATTACKS if attack is not changed for python in PYTHONS[1:]
])  # fmt: skip
def test_older_versions_do_not_either(attack, python, folder, tmp_path):
    attack(folder)
    code, output = run(python, tmp_path, "selftest", folder)
    assert code == 1 and ATTACKS[attack] in output, output


def test_a_sound_bundle_runs_on_each_of_these_versions(folder, tmp_path):
    """Else the attacks would prove nothing."""
    for python in PYTHONS:
        if not python or (ROOT / python).exists():
            code, output = run(python, tmp_path, "selftest", folder)
            assert code == 0, (python, output)


def external(location, name="t"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_of_all_places():
    """External data wherever onnx.proto has a place for a tensor, `1` to `11`."""
    inner = helper.make_graph([], "inner", [], [], [external("1")])
    deeper = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external("2"))], "deeper", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=deeper)
    node.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(external("3"))
    node.attribute.add(name="graphs").graphs.append(helper.make_graph([], "g", [], [], [external("4")]))
    sparse = onnx.SparseTensorProto(values=external("5"), indices=external("6"))
    node.attribute.add(name="sparse").sparse_tensor.CopyFrom(sparse)
    node.attribute.add(name="all").sparse_tensors.append(onnx.SparseTensorProto(values=external("7")))
    graph = helper.make_graph([node], "g", [], [], [external("8")])
    graph.sparse_initializer.append(onnx.SparseTensorProto(indices=external("9")))
    function = onnx.FunctionProto(node=[helper.make_node("Constant", [], ["c"], value=external("10"))])
    function.attribute_proto.add(name="default").t.CopyFrom(external("11"))
    training = onnx.TrainingInfoProto(
        initialization=helper.make_graph([], "a", [], [], [external("12")]),
        algorithm=helper.make_graph([], "b", [], [], [external("13")]),
    )
    return onnx.ModelProto(ir_version=8, graph=graph, functions=[function], training_info=[training])


def found(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    return external_files(str(tmp_path / "model.onnx"))


def test_every_place_of_a_tensor_is_read(tmp_path):
    assert found(tmp_path, model_of_all_places().SerializeToString()) == {str(number) for number in range(1, 14)}


def test_the_fields_are_those_of_onnx():
    """Each message from which a tensor can be reached, by the package's own description."""
    pending, holds = [onnx.ModelProto.DESCRIPTOR], {}
    while pending:
        message = pending.pop()
        if message.name not in holds:
            inner = [field for field in message.fields if field.message_type]
            holds[message.name] = {field.number: field.message_type.name for field in inner}
            pending += [field.message_type for field in inner]
    reaching = {"TensorProto"}
    while more := {name for name, fields in holds.items() if reaching & {*fields.values()}} - reaching:
        reaching |= more
    assert {name: fields for name, fields in INNER.items() if name in reaching - {"TensorProto"}} == {
        name: {number: kind for number, kind in holds[name].items() if kind in reaching}
        for name in reaching - {"TensorProto"}
    }
    assert INNER["TensorProto"] == {onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER: "StringStringEntryProto"}


def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number, content, tag_bits=0):
    return varint((number << 3 | 2) + tag_bits) + varint(len(content)) + content


def hidden(entry, tag_bits=0):
    return field(7, field(5, field(13, entry)), tag_bits)


@pytest.mark.parametrize("entry", [
    field(1, b"location") + field(2, b"../secret"), field(2, b"../secret") + field(1, b"location"),
    field(1, b"offset") + field(1, b"location") + field(2, b"listed") + field(2, b"../secret"),
    field(2, b"\x6a\x12") + field(1, b"location") + field(2, b"listed") + field(2, b"../secret"),
    b"\x0a\x88\x00location\x92\x80\x00\x89\x80\x00../secret",  # numbers that are longer than they need to be
])  # fmt: skip
def test_other_encodings_of_the_same_name_are_read(entry, tmp_path):
    content = hidden(entry)
    (tensor,) = onnx.ModelProto.FromString(content).graph.initializer
    assert [(one.key, one.value) for one in tensor.external_data] == [("location", "../secret")]
    assert found(tmp_path, content) == {"../secret"}


@pytest.mark.parametrize("content", [
    b"", b"\x3a", b"\x3a\x05abc", b"\xff" * 99, b"\x80" * 99, b"\x3b\x3c", hidden(b"", 2**32), field(7, b"\x2a\x09a"),
])  # fmt: skip
def test_what_another_reader_could_read_otherwise_is_refused(content, tmp_path):
    with pytest.raises(MerinoError, match=r"model\.onnx cannot be read as an ONNX model"):
        found(tmp_path, content)


WHOLE = model_of_all_places().SerializeToString()


def locations(message):
    """Every value of a key `location` in a message, by the package's own reader."""
    if isinstance(message, onnx.StringStringEntryProto):
        return {message.value} if message.key == "location" else set()
    fields = [value for field, value in message.ListFields() if field.message_type]
    parts = [part for value in fields for part in (value if hasattr(value, "__len__") else [value])]
    return set().union(*map(locations, parts))


@example([(279, 128)])  # a location that is not UTF-8
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6))
def test_no_location_that_protobuf_finds_is_missed(tmp_path_factory, changes):
    content = bytearray(WHOLE)
    for place, byte in changes:
        content[place] = byte
    try:
        expected = locations(onnx.ModelProto.FromString(bytes(content)))
        result = found(tmp_path_factory.getbasetemp(), content)
    except MerinoError:
        return  # it is not opened
    except Exception as error:
        assert "DecodeError" in type(error).__name__
        return
    assert expected <= result


ROOT = Path(__file__).parents[2]
BOARD, WORKSTATION = ("-c", quick_bench.MAIN), ("-m", "merino_edge.cli.start")
LIBRARY = library_file(platform.machine())  # the name that the release's own library has
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void run_module(void) { FILE *mark = fopen(getenv("MARK"), "w"); fclose(mark); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A shared library that makes the file $MARK as soon as it is loaded."""
    compiler = next(filter(shutil.which, ("cc", "gcc", "gcc-14")), None)
    if compiler is None:
        pytest.skip("no C compiler here to make a library with")
    strange = tmp_path_factory.mktemp("library")
    (strange / "run.c").write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", strange / "run.so", strange / "run.c"], check=True)
    return strange / "run.so"


@pytest.fixture(params=["as operators", "as paths"])
def strange(request, library, embedded_bundles, tmp_path):
    """A sound bundle but for one file more. As paths: `kernels` names the file itself, as bundles once did."""
    strange = Path(shutil.copytree(embedded_bundles["fused", "int4"], tmp_path / "bundle"))
    shutil.copy(library, strange / LIBRARY)
    description = json.loads((strange / "bundle.json").read_text())
    content = library.read_bytes()
    description["files"].append(
        {"path": LIBRARY, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    )
    if request.param == "as paths":
        description["kernels"] = [{"machine": platform.machine(), "path": LIBRARY}]
    (strange / "bundle.json").write_text(json.dumps(description))
    return strange


def is_taken(strange):
    """Whether its bundle.json follows the schema, so that it runs: by the library of the release."""
    return isinstance(json.loads((strange / "bundle.json").read_text())["kernels"][0], str)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "mark"


def run_module(module, *words, **options):
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{quick_bench.ROOTS}"}
    words = [sys.executable, *module, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=variables, **options)


def test_the_library_runs_where_it_is_loaded(library, mark):
    """Else the attacks would prove nothing."""
    subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"], check=True)
    assert mark.exists()


CALLS = [
    (BOARD, "selftest"), (WORKSTATION, "generate", "Once", "-n", "2"),
    (BOARD, "bench", "-p", "8", "-n", "2", "-r", "1"),
    (WORKSTATION, "eval", "--perplexity", "text.txt"),
]  # fmt: skip


@pytest.mark.slow
def test_no_verb_of_either_side_loads_it(strange, mark, tmp_path):
    """A description that does not follow the schema is refused by one function: two of the calls stand for all."""
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox. " * 9)
    for module, verb, *words in CALLS if is_taken(strange) else CALLS[:2]:
        done = run_module(module, verb, strange, *words, cwd=tmp_path)
        assert not mark.exists(), (verb, "ran the library")
        assert done.returncode == (0 if is_taken(strange) else 1), (verb, done.stderr)
        assert is_taken(strange) or "does not follow schema" in done.stdout + done.stderr


of_operators = pytest.mark.parametrize("strange", ["as operators"], indirect=True)


@pytest.mark.slow
@of_operators
def test_a_server_does_not_load_it(strange, mark):
    with Server(strange, XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"]) as server:
        assert server.call("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 2})[0] == 200
    assert not mark.exists()


@pytest.mark.slow
@of_operators
def test_an_install_does_not_load_it(strange, mark, tmp_path):
    """The application is this project's, the bundle in the package is the stranger's."""
    packed = tmp_path / "a.merino"
    packed.write_bytes(packed_bytes(app_bytes(tmp_path / "app.pyz"), [bundle_files(strange)]))
    done = run_module(BOARD, "install", packed, "--root", tmp_path / "root", "--allow=unsigned")
    assert not mark.exists() and done.returncode == 0, done.stderr


@of_operators
def test_info_names_it(strange, mark, here):
    note = f"{LIBRARY} (never loaded from a bundle; runs only if you start it)"
    (strange / "merino.pyz").unlink()
    printed = here("info", strange)[1]
    assert "code in it" in printed and note in printed
    assert f"code: {note}; kernels: GroupAttention8, MatMul4" in here("info", "--check", strange)[1]
    for words in (["info"], ["info", "--check"]):
        assert json.loads(here(*words, strange, "--json")[1])["code"] == [LIBRARY]
    assert not mark.exists()
