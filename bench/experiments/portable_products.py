"""Instructions per weight of `portable` int8, weights signed and unsigned, and of float32, in an old ONNX Runtime.

    python -m pip download --no-deps --only-binary=:all: --platform manylinux_2_17_aarch64 --python-version 36 \\
        -d DIR onnxruntime==1.10.0 && unzip -d DIR DIR/*.whl
    python bench/experiments/portable_products.py DIR/onnxruntime/capi/onnxruntime_pybind11_state*.so -o FILE

The Jetson Nano's Python 3.6 has version 1.10. The emulated board has no such Python, so the library is called through
its C interface (`runs_by_c.py`). Of each product the instructions of two matrices are counted that differ in rows
alone: what a run costs besides its weights falls out. Needs binutils, `make boards`, and a qemu-aarch64 with plugins,
which MERINO_QEMU_PLUGINS names.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "targets"))
os.environ.setdefault("MERINO_USERS_CACHE", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))

from counted_instructions import marks, why_not  # noqa: E402 - a module of the tests
from write_record import write_record

CPUS, ROWS = ("cortex-a57", "cortex-a72", "cortex-a53"), (1, 16)  # positions: a decode step, a prompt
COLUMNS, WEIGHTS = 512, (256, 1280)
KINDS = {"float32": np.float32, "int8": np.int8, "uint8": np.uint8}


def write_product(kind: str, rows: int, path: Path) -> None:
    """x [n, COLUMNS] times a matrix [COLUMNS, rows] as dialect `portable` multiplies; codes of uint8 are around 128."""
    codes = np.random.default_rng(0).integers(-127, 128, (COLUMNS, rows))
    constants = {"w": (codes + 128 * (kind == "uint8")).astype(KINDS[kind])}
    if kind == "float32":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        inputs = ["q", "w", "zero", "middle"] if kind == "uint8" else ["q", "w", "zero"]
        constants["scales"] = np.full(rows, 0.01, np.float32)
        if kind == "uint8":
            constants["middle"] = np.array(128, np.uint8)
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", inputs, ["sums"]),
            helper.make_node("Mul", ["scale", "scales"], ["both"]),
            helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "both"], ["y"]),
        ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
             for name, size in (("x", COLUMNS), ("y", rows))]  # fmt: skip
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def offset_of(library: Path) -> int:
    """From the one function that the library exports to its C interface, by its table of symbols."""
    said = subprocess.run(["readelf", "-Ws", library], check=True, capture_output=True, text=True).stdout
    places = {words[-1]: words[1] for line in said.splitlines() if len(words := line.split()) == 8}
    return int(places["OrtGetApiBase"], 16) - int(places["PyInit_onnxruntime_pybind11_state"], 16)


def per_weight(cpu: str, rows: int, folder: Path, library: Path) -> dict[str, float]:
    """Instructions of a run for each weight and position, by kind."""
    models = [folder / f"{kind}-{size}.onnx" for kind in KINDS for size in WEIGHTS]
    script = Path(__file__).with_name("runs_by_c.py")
    found = marks(cpu, [script, library, str(offset_of(library)), str(rows), str(COLUMNS), *models])
    each = dict(zip(KINDS, np.reshape(last_runs(found, len(models)), (len(KINDS), 2)), strict=True))
    weights = (WEIGHTS[1] - WEIGHTS[0]) * COLUMNS * rows
    return {kind: round(float(large - small) / weights, 3) for kind, (small, large) in each.items()}


def last_runs(found: Sequence[int], models: int) -> list[int]:
    """Of each model's four marks the difference of the last two."""
    assert len(found) == 4 * models
    return [found[4 * model + 3] - found[4 * model + 2] for model in range(models)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--version", default="1.10.0", help="of it, for the record; default %(default)s")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    if why_not():
        sys.exit(why_not())
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for size in WEIGHTS:
                write_product(kind, size, Path(folder) / f"{kind}-{size}.onnx")
        found = [
            {"cpu": cpu, "positions": rows, **per_weight(cpu, rows, Path(folder), given.library)}
            for cpu in CPUS for rows in ROWS
        ]  # fmt: skip
    for row in found:
        print(row, file=sys.stderr)
    write_record(given.out, {"onnxruntime": given.version, "rows": found})


if __name__ == "__main__":
    main()
