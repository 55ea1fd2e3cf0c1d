"""NVIDIA's own parser and builder take our portable graphs, on the CPU. No plan is run: that needs a GPU.

It is TensorRT-RTX, newer than what the boards have, so a pass proves no board, and a refusal is a real finding. The
boards' versions are judged by a table: tests/edge/test_tensorrt_check.py. Needs `make tensorrt`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

ROOT = Path(
    os.environ.get("MERINO_TENSORRT_ROOT") or Path(os.environ["MERINO_USERS_CACHE"]) / "merino_edge" / "tensorrt"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "recipe").exists(), reason=f"no TensorRT-RTX in {ROOT}: make tensorrt"),
]

from sample_bundles import graph_bundle  # noqa: E402
from sample_models import SMALL, small  # noqa: E402

from merino_edge.bundles.tensorrt import check_bundle  # noqa: E402
from merino_edge.families.designed import Architecture  # noqa: E402
from merino_edge.families.opt import OptArchitecture  # noqa: E402
from merino_edge.families.zoo import model  # noqa: E402

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
    words = [sys.executable, Path(__file__).with_name("tensorrt_build.py"), ROOT, Path(folder) / "model.onnx", *lengths]
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
            by_day = name == "design" or (precision == "fp16" and name in DAILY)
            if (name, precision) != ("opt-350m", "fp32"):
                marks = () if by_day else pytest.mark.nightly
                yield pytest.param(arch, precision, context, marks=marks, id=f"{name} {precision}")


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


@pytest.mark.parametrize(
    ("dialect", "precision", "named"),
    [
        ("fused", "fp32", "GroupQueryAttention"), ("fused", "int4", "GatherBlockQuantized"),
        ("portable", "int8", "MatMulInteger"),
    ],
)  # fmt: skip
def test_what_the_check_refuses_nvidias_parser_refuses(dialect, precision, named, tmp_path):
    bundle = graph_bundle(tmp_path / "bundle", TINY, dialect, precision)
    built = build(bundle.folder, 1, CHUNK)
    assert not built["parsed"] and built["plan_bytes"] == 0 and named in {name for name, _ in built["errors"]}
    operators = {each.operator for each in check_bundle(bundle, "10.3").problems}
    assert named in operators


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
