"""The shipped graphs are those that the exporter writes today, and they run in the runtime."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from merino_bench.probe import graphs
from merino_bench.probe import tasks as plan
from merino_edge.bundles.board_app import write_board_app
from merino_edge.bundles.description import GraphFormat
from merino_edge.export.dialects import build_graph
from merino_edge.export.dialects.external_data import DataFile
from merino_edge.export.source import graph_weights, random_source
from merino_runtime.backends import open_backend
from probe_graphs import build
from probe_graphs.build import operator_graph
from probe_graphs.grid import graphs_to_ship
from tests.sample_models import quantized

pytestmark = pytest.mark.slow

FORMATS = ["fp32", "int8", "int4"]


@pytest.fixture(scope="module")
def built():
    return build.build_all(graphs_to_ship())


def test_the_shipped_graphs_are_those_of_todays_exporter(built):
    """Else `cd bench && python -m probe_graphs.build` is due."""
    assert sorted(kernel for kernel, _ in built) == sorted(graphs.kernels())
    assert set(graphs.members()) == {graphs.INDEX, *(kernel.file for kernel, _ in built)}
    for kernel, model in built:
        assert onnx.load_from_string(kernel.model) == model, kernel.file


def test_an_archive_is_the_same_bytes_each_time(built, tmp_path):
    few = [graph for graph in built if graph[0].kind in ("call", "norm", "attention")]
    for name in ("one", "two"):
        build.write_archive(tmp_path / name, few)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_board_carries_less_than_120_kb():
    assert (Path(graphs.__file__).parent / graphs.ARCHIVE).stat().st_size < 120_000


def test_the_boards_application_carries_the_graphs(tmp_path):
    write_board_app(tmp_path / "merino.pyz")
    code = "from merino_bench.probe import graphs; print(graphs.__file__, len(graphs.kernels()[-1].model))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path / "merino.pyz")},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    path, size = done.stdout.split()
    assert path.startswith(str(tmp_path)) and int(size) == len(graphs.kernels()[-1].model)


def exported_graph(arch, form):
    source = random_source(arch, "probed")
    return build_graph(arch, graph_weights(source), quantized(source, form), form)


@pytest.mark.parametrize(("uses", "kv_heads"), [(1, 0), (4, 0), (1, plan.GROUPED_DECODER_KV_HEADS)])
@pytest.mark.parametrize("form", FORMATS)
def test_a_decoder_is_the_exported_model_of_its_geometry(form, uses, kv_heads):
    """Its values that are stored inside the model are norms, which begin as ones in a new model."""
    result = graphs.kernels_of("fused", "decoder", form, uses=uses, kv_heads=kv_heads)
    kernel = next(kernel for kernel in result if kv_heads or kernel.columns == 256)
    arch = build.decoder_architecture(plan.Task(**{name: getattr(kernel, name) for name in kernel._fields[2:12]}))
    exported = exported_graph(arch, GraphFormat(form, "fused", plan.DECODER_CONTEXT))
    assert onnx.load_from_string(kernel.model) == exported.model(DataFile())
    assert (kernel.inputs, kernel.outputs) == (tuple(exported.inputs), tuple(exported.outputs))


@pytest.mark.parametrize("form", FORMATS)
def test_a_decoder_runs_in_the_runtimes_backend(form, tmp_path):
    kernel = min(graphs.kernels_of("fused", "decoder", form), key=lambda kernel: kernel.weight_bytes)
    graphs.write_weights(str(tmp_path), kernel.weight_bytes, 0)
    (tmp_path / "model.onnx").write_bytes(kernel.model)
    backend = open_backend(graphs.bundle_of(str(tmp_path), kernel), 1)
    assert np.isfinite(backend.prefill([1, 2, 3])).all() and np.isfinite(backend.step(4)).all()
    backend.close()


def test_values_of_weights_are_not_touched():
    """16 GB of matrices, more than the machine need have."""
    graph = operator_graph({f"w{index}": (2**15, 2**15) for index in range(4)}, GraphFormat("fp32", "fused", 1))
    for name in graph.weights:
        graph.output(graph.linear("x", name), "float32", [1, "sequence", 2**15])
    assert graph.decode_weight_bytes == 16 * 2**30
