"""The stand-in has the signatures of NVIDIA's Python bindings: 8.6.1 on Python 3.6, less what 8.2 lacks, and 10.3.0.

The bindings (1 MB each) import beside libraries that are empty but for the symbols they ask for: a docstring of each
method gives its parameters. No code of TensorRT runs. Needs a package index and a C compiler; kept in the user's cache.
"""

import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.tensorrt_stand_in import Gpu, tensorrt_module

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(platform.machine() != "x86_64", reason="the bindings are x86's")
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
# Version of the stand-in: package, Python of the wheel, what the bindings link to.
BINDINGS = {
    "8.2.1.8": ("tensorrt-bindings==8.6.1", "3.6", ("nvinfer", "nvonnxparser", "nvparsers", "nvinfer_plugin")),
    "10.3.0": ("tensorrt-cu12-bindings==10.3.0", "3.10", ("nvinfer", "nvonnxparser", "nvinfer_plugin")),
}
# In 8.6 and not in 8.2: the tensor calls came with 8.5, pools with 8.4.
AFTER_82 = {
    "set_input_shape", "set_tensor_address", "execute_async_v3", "num_io_tensors", "get_tensor_name",
    "get_tensor_dtype", "get_tensor_shape", "get_tensor_mode", "set_memory_pool_limit", "MemoryPoolType",
    "TensorIOMode", "INT64",
}  # fmt: skip
# Set in `__init__` of the stand-in's classes, properties of the real ones.
PROPERTIES = {
    "ITensor": ("name", "dtype", "shape"), "ILayer": ("name", "type", "num_inputs", "num_outputs", "precision"),
    "IElementWiseLayer": ("op",), "ICudaEngine": ("device_memory_size", "num_optimization_profiles"),
    "IExecutionContext": ("device_memory",),
}  # fmt: skip
DUMP = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings
print(json.dumps({name: {member: (getattr(getattr(each, member), "__doc__", "") or "")[:3000] for member in dir(each)}
                  for name, each in vars(tensorrt_bindings).items() if isinstance(each, type)}))
"""


def python_of(version):
    """An interpreter of that version; None where there is none."""
    named = [ROOT / f".venv{version.replace('.', '')}" / "bin" / "python", shutil.which(f"python{version}")]
    named += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for path in filter(None, named):
        try:
            command = [path, "-c", "import sys; print(sys.version_info[:2])"]
            printed = subprocess.run(command, capture_output=True, text=True)
        except OSError:
            continue
        if printed.stdout.strip() == f"({version.replace('.', ', ')})":
            return str(path)
    return None


def unpacked(requirement, version):
    """The folder of the bindings."""
    users = os.environ.get("MERINO_USERS_CACHE") or str(Path.home() / ".cache")
    folder = Path(users) / "merino_edge" / "tensorrt-bindings" / requirement.replace("==", "-")
    if not (folder / "tensorrt_bindings").exists():
        folder.mkdir(parents=True, exist_ok=True)
        short = version.replace(".", "")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", version,
             "--abi", f"cp{short}" + "m" * (version == "3.6"), "--abi", "none", "--platform", "manylinux_2_17_x86_64",
             "--dest", folder, requirement],
            capture_output=True, text=True,
        )  # fmt: skip
        wheels = list(folder.glob("*.whl"))
        if not wheels:
            pytest.skip(f"{requirement} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(folder)
    return folder


def empty_libraries(folder, names, number, place):
    """Shared libraries that export what the bindings ask of them: functions that return nothing."""
    if shutil.which("cc") is None or shutil.which("nm") is None:
        pytest.skip("no C compiler to make empty libraries with")
    module = folder / "tensorrt_bindings" / "tensorrt.so"
    listed = subprocess.run(["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True)
    own = r"INTERNAL|PluginRegistry|OnnxParserVersion|initLib|^_ZN1[14]nv"
    undefined = [line.split()[-1] for line in listed.stdout.splitlines() if line.split()[0] == "U"]
    wanted = [name for name in undefined if re.search(own, name)]
    assert len(wanted) >= 9
    (place / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    for name in names:
        library = place / f"lib{name}.so.{number}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, place / "empty.c"], check=True)


@pytest.fixture(scope="module", params=BINDINGS)
def pair(request, tmp_path_factory):
    """(the stand-in's module, names of the real one's classes -> their members -> docstrings, version)."""
    requirement, version, names = BINDINGS[request.param]
    python = python_of(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    folder, place = unpacked(requirement, version), tmp_path_factory.mktemp("libraries")
    empty_libraries(folder, names, request.param.split(".")[0], place)
    done = subprocess.run(
        [python, "-c", DUMP, folder], capture_output=True, text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(place), "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tensorrt_module(Gpu(), request.param), json.loads(done.stdout), request.param


def classes(module):
    return {name: each for name, each in vars(module).items() if isinstance(each, type)}


def signatures(name, doc):
    """Names of the parameters behind `self`, of each overload that a docstring lists."""
    overloads = []
    for arguments in re.findall(rf"(?m)^(?:\d+\. )?{name}\((.*)\) -> ", doc):
        names = re.findall(r"(?:^|, )(\w+): ", re.sub(r"\[[^\]]*\]|<[^>]*>", "", arguments))
        overloads.append(names[1:] if names[:1] == ["self"] else names)
    return overloads


def test_every_class_is_a_real_one(pair):
    module, real, _ = pair
    assert len(classes(module)) > 15
    assert set(classes(module)) - {"Severity"} <= set(real)


def test_every_method_has_the_real_ones_parameters(pair):
    module, real, _ = pair
    checked = 0
    for name, each in classes(module).items():
        for member, value in vars(each).items():
            if member.startswith("_") or not inspect.isfunction(value) or issubclass(each, int):
                continue
            assert member in real[name], f"{name}.{member} does not exist"
            mine = list(inspect.signature(value).parameters)[1:]
            assert mine in signatures(member, real[name][member]), (name, member, real[name][member][:300])
            checked += 1
    assert checked >= 30


def test_every_property_and_member_of_an_enumeration_is_a_real_one(pair):
    module, real, version = pair
    for name, each in classes(module).items():
        members = [member for member, value in vars(each).items() if isinstance(value, property)]
        members += list(getattr(each, "__members__", ())) if name != "Severity" else []
        members += PROPERTIES.get(name, ())
        assert [member for member in members if member not in real[name]] == [], name
    assert {each.name for each in module.Severity} <= set(real["ILogger"])
    assert not version.startswith("8.") or "max_workspace_size" in real["IBuilderConfig"]


def test_what_8_2_lacks_the_stand_in_of_8_2_lacks(pair):
    module, _, version = pair
    if not version.startswith("8."):
        pytest.skip("of 8.2")
    held = set(vars(module)).union(*(dir(each) for each in classes(module).values()))
    assert held & AFTER_82 == set()
