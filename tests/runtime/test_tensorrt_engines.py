"""Engines: how they are built, kept and refused, on the stand-in of both versions."""
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from merino_runtime.__main__ import main
from merino_runtime.backends import engine_build, engine_file, open_backend
from merino_runtime.backends.engine_build import build_engine
from merino_runtime.backends.engine_file import HEADER_BYTES
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from tests.tensorrt_stand_in import VERSIONS, Gpu, put_in
from tests.tensorrt_stand_in.building import PLAN

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def bundle(bundle_dirs):
    return load_bundle(str(bundle_dirs["portable"]))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "merino" / "engines"


@pytest.fixture(params=VERSIONS)
def gpu(request, monkeypatch, cache):
    machine = Gpu()
    put_in(machine, request.param, monkeypatch)
    machine.version = request.param
    yield machine
    gc.collect()
    assert machine.violations == [] and machine.left() == []


def engines(cache):
    return sorted(cache.glob("*.engine")) if cache.exists() else []


def plan_of(path):
    data = path.read_bytes()[HEADER_BYTES:]
    assert data.startswith(PLAN)
    return json.loads(data[len(PLAN):].decode("utf-8"))


def built(bundle, fp16=False, workspace_mb=None):
    messages = []
    made = build_engine(bundle, fp16, workspace_mb, messages.append)
    return made, messages


def test_an_engine_is_built_once_and_then_loaded(bundle, gpu, cache):
    made, notes = built(bundle)
    assert made.built and [str(path) for path in engines(cache)] == [made.path]
    assert gpu.name in notes[0] and "minutes" in notes[0] and made.path in notes[-1]
    assert built(bundle) == ((made.path, False), [])
    open_backend(bundle, backend="tensorrt").close()
    assert gpu.builds == 1


def test_every_engine_names_all_that_it_depends_on(bundle, gpu, cache, monkeypatch):
    """One of each other kind is built beside it: none is taken for another."""
    built(bundle)
    count = 1
    for change in (lambda: setattr(gpu, "name", "Another GPU"), lambda: setattr(gpu, "capability", (8, 7)),
                   lambda: put_in(gpu, gpu.version[:-1] + "9", monkeypatch),
                   lambda: monkeypatch.setattr(engine_build, "PREFILL_CHUNK_IDS", 16),
                   lambda: monkeypatch.setattr(engine_build.pkgutil, "get_data", lambda *_: b"another builder")):
        change()
        made, _ = built(bundle)
        count += 1
        assert made.built and len(engines(cache)) == count
    other = bundle._replace(files=tuple(file._replace(sha256="0" * 64) for file in bundle.files))
    assert built(other)[0].built and len(engines(cache)) == count + 1


def damaged(data, place, kind):
    """The engine's bytes with one fault."""
    header_end = data.index(b"\0")
    at = {"magic": 3, "header": header_end // 2, "end of the header": header_end - 1, "padding": header_end + 9,
          "first of the plan": HEADER_BYTES, "plan": (HEADER_BYTES + len(data)) // 2, "last": len(data) - 1}[place]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 64]) + data[at + 1:]
    return data[:at] if kind == "cut" else data[:at] + b"x" + data[at:]


OLD, *NEWER = VERSIONS
# Files are read alike for both versions.
on_files = pytest.mark.parametrize(
    "gpu", [OLD, *(pytest.param(version, marks=pytest.mark.nightly) for version in NEWER)], indirect=True)


@on_files
@pytest.mark.parametrize("place, kind", [
    pytest.param(place, kind, marks=() if kind == "flip" or place in ("header", "plan") else pytest.mark.nightly)
    for place in ("magic", "header", "end of the header", "padding", "first of the plan", "plan", "last")
    for kind in ("flip", "cut", "insert")])
def test_a_damaged_engine_is_built_again_and_never_loaded(bundle, gpu, cache, place, kind, monkeypatch):
    built(bundle)
    path = engines(cache)[0]
    sound = path.read_bytes()
    path.write_bytes(damaged(sound, place, kind))
    loaded = recorded_loads(monkeypatch)
    open_backend(bundle, backend="tensorrt").close()
    assert gpu.builds == 2 and path.read_bytes()[HEADER_BYTES:] == sound[HEADER_BYTES:]
    assert loaded == [sound[HEADER_BYTES:]]


def recorded_loads(monkeypatch):
    """The plans that TensorRT is given, as a list that grows."""
    runtime, result = sys.modules["tensorrt"].Runtime, []
    load = runtime.deserialize_cuda_engine
    monkeypatch.setattr(runtime, "deserialize_cuda_engine",
                        lambda self, plan: (result.append(bytes(plan)), load(self, plan))[1])
    return result


def test_another_engine_under_this_ones_name_is_not_loaded(bundle, gpu, cache, monkeypatch):
    built(bundle)
    mine = engines(cache)[0]
    monkeypatch.setattr(gpu, "name", "Another GPU")
    other = [path for path in [built(bundle)[0].path] if path != str(mine)][0]
    with open(other, "rb") as file:
        mine.write_bytes(file.read())
    monkeypatch.setattr(gpu, "name", Gpu().name)
    loaded = recorded_loads(monkeypatch)
    open_backend(bundle, backend="tensorrt").close()
    assert len(loaded) == 1 and plan_of(mine)["gpu"] == Gpu().name


def test_an_engine_that_tensorrt_does_not_load_is_built_again_once(bundle, gpu, cache, monkeypatch):
    built(bundle)
    runtime = sys.modules["tensorrt"].Runtime
    load, refusals = runtime.deserialize_cuda_engine, [True, False]
    monkeypatch.setattr(runtime, "deserialize_cuda_engine",
                        lambda self, plan: None if refusals.pop(0) else load(self, plan))
    messages = []
    open_backend(bundle, backend="tensorrt", say=messages.append).close()
    assert gpu.builds == 2 and "built again" in messages[0]
    refusals[:] = [True, True]
    with pytest.raises(MerinoError, match="does not load the engine that it built"):
        open_backend(bundle, backend="tensorrt")


def test_a_build_that_runs_out_of_memory_says_what_to_do_and_keeps_nothing(bundle, gpu, cache):
    gpu.total = 100000
    with pytest.raises(MerinoError, match=r"out of memory.*--workspace-mb.*shorter --context"):
        built(bundle)
    assert engines(cache) == []
    gpu.total = 2 ** 32
    assert built(bundle)[0].built


def test_memory_is_checked_before_the_build(bundle, gpu, cache, monkeypatch):
    here = engine_build.board.this_board()
    monkeypatch.setattr(engine_build.board, "this_board", lambda: here._replace(memory_available_mb=100.0))
    assert any("may swap or be killed" in line for line in built(bundle)[1])
    monkeypatch.setattr(engine_build.board, "this_board", lambda: here._replace(memory_total_mb=500.0))
    gpu.name = "Another GPU"
    with pytest.raises(MerinoError, match="needs about .* MB: .*workspace.*500 MB in all"):
        built(bundle)
    assert gpu.builds == 1


@pytest.mark.parametrize("workspace_mb", [0, -1, 65537])
def test_a_workspace_that_is_not_allowed_is_refused(bundle, gpu, workspace_mb):
    with pytest.raises(MerinoError, match="--workspace-mb is {}, allowed: 1 to 65536".format(workspace_mb)):
        built(bundle, workspace_mb=workspace_mb)


def test_a_graph_that_the_parser_refuses_is_named_with_its_node(bundle_dirs, gpu, cache):
    if "fused" not in bundle_dirs:
        pytest.skip("no fused bundle for this Python's onnxruntime")
    fused = load_bundle(str(bundle_dirs["fused"]))
    with pytest.raises(MerinoError, match="does not take .*model.onnx: node -?[0-9]+: (opset|no importer)"):
        built(fused)


def test_the_commands(bundle, gpu, cache, capsys, monkeypatch):
    assert main(["build-engine", bundle.folder, "--fp16", "--workspace-mb", "64"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("built: ") and "fp16" in err
    assert main(["build-engine", bundle.folder, "--fp16"]) == 0
    assert capsys.readouterr().out.startswith("already there: ")
    assert main(["selftest", bundle.folder, "--backend", "tensorrt"]) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    ids = []
    for name in ("tensorrt", "onnxruntime"):
        assert main(["generate", bundle.folder, "the", "-n", "7", "--temperature", "0", "--set=ignore_eos=true",
                     "--json", f"--set=backend={name}"]) == 0
        ids.append([json.loads(line).get("id") for line in capsys.readouterr().out.splitlines()[:-1]])
    assert ids[0] == ids[1] and len(ids[0]) == 7
    gpu.driver = 0
    assert main(["generate", bundle.folder, "the", "--set=backend=tensorrt"]) == 1
    assert "no NVIDIA driver" in capsys.readouterr().err


CHILD = """
import sys, time
from tests.tensorrt_stand_in import Gpu, put_in
from merino_runtime.backends.engine_build import build_engine
from merino_runtime.bundle import load_bundle
class Always:
    def setitem(self, mapping, key, value): mapping[key] = value
    setattr = staticmethod(setattr)
gpu = Gpu()
put_in(gpu, sys.argv[2], Always())
import tensorrt
build = tensorrt.Builder.build_serialized_network
def slow(self, network, config):
    print("building", flush=True)
    time.sleep(float(sys.argv[3]))
    return build(self, network, config)
tensorrt.Builder.build_serialized_network = slow
if sys.argv[4] != "whole":  # writes forever at the wanted place
    import merino_runtime.io.outputs, os
    replace = os.replace
    def stop(*paths):
        if paths[1].endswith(".engine"):
            print("writing", flush=True)
            time.sleep(60)
        replace(*paths)
    os.replace = stop
made = build_engine(load_bundle(sys.argv[1], verify=False), False, None, lambda line: None)
print("built" if made.built else "found", flush=True)
"""


def child(bundle, version, seconds, how="whole"):
    paths = [ROOT, os.path.join(ROOT, "runtime")]
    return subprocess.Popen([sys.executable, "-c", CHILD, bundle.folder, version, str(seconds), how],
                            env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, cwd=ROOT)


def test_of_two_builders_one_builds_and_the_other_waits(bundle, cache):
    processes = [child(bundle, VERSIONS[0], 1) for _ in range(2)]
    output = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    assert sorted(out.split() for out, _ in output) == [[b"building", b"built"], [b"found"]]
    assert len(engines(cache)) == 1


def test_a_builder_that_is_killed_leaves_no_engine_and_no_lock(bundle, cache, gpu):
    for how, output in (("whole", b"building"), ("stopped", b"writing")):
        process = child(bundle, gpu.version, 60 if how == "whole" else 0, how)
        while process.stdout.readline().strip() not in (output, b""):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert engines(cache) == []
    assert built(bundle)[0].built
    assert len(engines(cache)) == 1
    assert [path.name for path in cache.iterdir() if re.search("merino-new", path.name)] == []


def strangers(bundle, made, folder):
    """The bundle in a folder of somebody else, beside an engine that has the right name, key and hashes."""
    copied = shutil.copytree(bundle.folder, str(folder / "bundle"))
    (folder / "engines").mkdir()
    shutil.copy(made.path, str(folder / "engines"))
    return load_bundle(copied)


def test_an_engine_that_came_beside_a_bundle_is_not_loaded(bundle, gpu, cache, monkeypatch, tmp_path):
    """Although its owner is this user, as is the owner of all that an archive holds."""
    made, _ = built(bundle)
    other, loads = strangers(bundle, made, tmp_path), recorded_loads(monkeypatch)
    with open(made.path, "rb") as file:
        foreign = file.read()[HEADER_BYTES:]
    os.unlink(made.path)
    open_backend(other, backend="tensorrt").close()
    assert gpu.builds == 2 and len(loads) == 1 and foreign not in loads and len(engines(cache)) == 1


def test_an_engine_in_the_release_of_the_running_application_is_loaded(bundle, gpu, cache, monkeypatch, tmp_path):
    made, _ = built(bundle)
    other = strangers(bundle, made, tmp_path)
    os.unlink(made.path)
    monkeypatch.setattr(engine_file, "__file__", str(tmp_path / "merino.pyz" / "merino_runtime" / "engine_file.py"))
    open_backend(other, backend="tensorrt").close()
    assert gpu.builds == 1 and not engines(cache)


@on_files
@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("change", ["owner", "mode", "group"])
def test_an_engine_that_another_user_could_write_is_not_loaded(bundle, gpu, cache, monkeypatch, place, change):
    made, _ = built(bundle)
    path = made.path if place == "file" else os.path.dirname(made.path)
    if change != "mode" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    if change == "owner":
        os.chown(path, 4711, -1)
    else:
        os.chown(path, -1, 4711 if change == "group" else -1)
        os.chmod(path, 0o777 if change == "mode" else 0o775)
    loads = recorded_loads(monkeypatch)
    if place == "folder":
        with pytest.raises(MerinoError, match="other users can write .*engines.*chmod go-w"):
            open_backend(bundle, backend="tensorrt")
        assert loads == []
    else:
        open_backend(bundle, backend="tensorrt").close()
        assert gpu.builds == 2 and os.stat(path).st_uid == os.geteuid() and not os.stat(path).st_mode & 0o022


def test_an_engine_is_not_writable_by_others_whatever_the_umask(bundle, gpu, cache):
    before = os.umask(0)
    try:
        built(bundle)
    finally:
        os.umask(before)
    open_backend(bundle, backend="tensorrt").close()
    assert gpu.builds == 1
