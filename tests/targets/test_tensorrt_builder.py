"""NVIDIA's own parser and builder take our portable graphs, on the CPU. No plan is run: that needs a GPU.

It is TensorRT-RTX, newer than what the boards have, so a pass proves no board, and a refusal is a real finding. The
boards' versions are judged by a table: tests/edge/test_tensorrt_check.py. Needs `make tensorrt`.

The stand-in has the signatures of NVIDIA's Python bindings: 8.6.1 on Python 3.6, less what 8.2 lacks, and 10.3.0.
They import beside libraries that are empty but for the symbols they ask for: a docstring of each method gives its
parameters. No code of TensorRT runs for that. Needs a package index and a C compiler; kept in the user's cache.
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

import onnx
import pytest
from sample_models import SMALL, graph_bundle, small

from merino_edge.bundles.tensorrt import check_bundle
from merino_edge.families.designed import Architecture
from merino_edge.families.opt import OptArchitecture
from merino_edge.families.zoo import model
from tests.tensorrt_stand_in import Gpu, tensorrt_module

RTX = Path(
    os.environ.get("MERINO_TENSORRT_ROOT") or Path(os.environ["MERINO_USERS_CACHE"]) / "merino_edge" / "tensorrt"
)
pytestmark = pytest.mark.slow
needs_rtx = pytest.mark.skipif(not (RTX / "recipe").exists(), reason=f"no TensorRT-RTX in {RTX}: make tensorrt")
TINY = Architecture(blocks=[{"width": 64, "ffn_ratio": 1.0, "depth": 1}], vocab=300, head_size=32, context=64)
DESIGN = Architecture(
    blocks=[
        {"width": 96, "ffn_ratio": 1.5, "depth": 2, "shared": True}, {"width": 192, "ffn_ratio": 4.0, "depth": 1},
    ],
    vocab=32_000, head_size=32, context=128,
)  # fmt: skip
WIDE = Architecture(blocks=[{"width": 128, "ffn_ratio": 1.0, "depth": 1}], vocab=151_936, head_size=64, context=64)
OPT = OptArchitecture(
    width=64, layers=2, heads=2, ffn_width=96, embed_width=32, vocab=300, context=64, pre_norm=False
)  # fmt: skip
CHUNK = 64


def build(folder, *lengths):
    words = [sys.executable, Path(__file__).with_name("tensorrt_build.py"), RTX, Path(folder) / "model.onnx", *lengths]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

DAILY = ("151,936 ids", "gemma3_text", "gpt_neox", "opt-125m")


def all_built():
    """By day a design, and in float16, which the boards prefer, a family of each kind and the smaller published model.
    """
    sizes = [("design", DESIGN, 128), ("151,936 ids", WIDE, 64), ("opt post-norm", OPT, 64)]
    sizes += [(family, small(family, context=128), 128) for family in SMALL]
    sizes += [(name, model(name).geometry, 256) for name in ("opt-125m", "opt-350m")]
    for name, arch, context in sizes:
        for precision in ("fp32", "fp16"):
            by_day = (name, precision) in (("design", "fp32"), ("opt-125m", "fp16"))
            if (name, precision) != ("opt-350m", "fp32"):
                marks = () if by_day else pytest.mark.nightly
                yield pytest.param(arch, precision, context, marks=marks, id=f"{name} {precision}")


@needs_rtx
@pytest.mark.parametrize(("arch", "precision", "context"), list(all_built()))
def test_a_plan_is_built_for_decode_and_prefill(arch, precision, context, tmp_path):
    bundle = graph_bundle(tmp_path / "bundle", arch, precision=precision, context=context)
    built = build(bundle.folder, 1, CHUNK)
    assert built["parsed"] and built["errors"] == [], built
    codes = {"int64": "INT64", "float32": "FLOAT", "float16": "HALF"}
    open_axes = [[-1 if axis == "sequence" else axis for axis in port.shape] for port in bundle.inputs]
    assert built["inputs"] == [
        [port.name, codes[port.dtype], shape] for port, shape in zip(bundle.inputs, open_axes, strict=True)
    ]
    # It holds the weights, each once for a profile at the most, or less where zeros are stored as such.
    assert built["plan_bytes"] > 100_000


@needs_rtx
@pytest.mark.parametrize(
    ("dialect", "precision", "named"),
    [
        ("fused", "fp32", "GroupQueryAttention"), ("fused", "int4", "Rows8"),
        ("portable", "int8", "MatMulInteger"),
    ],
)  # fmt: skip
def test_what_the_check_refuses_nvidias_parser_refuses(dialect, precision, named, tmp_path):
    bundle = graph_bundle(tmp_path / "bundle", TINY, dialect, precision)
    built = build(bundle.folder, 1, CHUNK)
    assert not built["parsed"] and built["plan_bytes"] == 0 and named in {name for name, _ in built["errors"]}
    operators = {each.operator for each in check_bundle(bundle, "10.3").problems}
    assert named in operators


@needs_rtx
def test_a_slice_over_the_bytes_of_the_table_is_refused(tmp_path):
    """Why the head is one matmul: docs/decisions/export.md."""
    bundle = graph_bundle(tmp_path / "bundle", TINY)
    path = tmp_path / "bundle" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    (table,) = (tensor for tensor in graph.graph.initializer if tensor.name == "embed_tokens.weight")
    part = graph.graph.initializer.add()
    part.CopyFrom(table)
    part.name, part.dims[0] = "part", 150
    next(entry for entry in part.external_data if entry.key == "length").value = str(150 * 64 * 4)
    (head,) = (node for node in graph.graph.node if node.op_type == "Gemm")
    head.input[1] = "part"
    del graph.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save_model(graph, path)
    built = build(bundle.folder, 1, CHUNK)
    assert not built["parsed"] and [name for name, _ in built["errors"]] == ["Gemm"], built
    assert "different counts" in built["errors"][0][1]


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
    if platform.machine() != "x86_64":
        pytest.skip("the bindings are x86's")
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
    assert checked > 25


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
