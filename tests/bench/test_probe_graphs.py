"""The probe's own ONNX writer against the onnx package, and its graphs against numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from merino_bench.probe import decoder_graph
from merino_bench.probe import graphs as kernels
from merino_bench.probe import tasks as plan
from merino_bench.probe.onnx_writer import FLOAT, Node, Port, Stored, model
from merino_edge.export.export import build_graph
from merino_edge.export.onnx import graph
from merino_edge.export.quantize import Quantized, dequantize
from merino_edge.export.source import random_source
from merino_edge.families.designed import Architecture, Block

ATTRIBUTES = (("ints", (0, 1, -3, 2**40)), ("one", 7), ("minus", -1), ("real", 0.25))


def test_the_writer_writes_what_the_onnx_package_reads():
    nodes = [Node("MatMul", ("x", "w"), ("y",)), Node("Thing", ("y", ""), ("z",), "com.microsoft", ATTRIBUTES)]
    stored = Stored("w", FLOAT, (300, 2), "weights.bin", 4096, 2400)
    ports = [Port("x", FLOAT, (1, "T", 300))], [Port("z", FLOAT, ())]
    found = onnx.load_from_string(model(nodes, *ports, [stored], 13, 8))
    expected_nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="MatMul_0"),
        helper.make_node(
            "Thing", ["y", ""], ["z"], name="Thing_1", domain="com.microsoft", ints=[0, 1, -3, 2**40], one=7, minus=-1,
            real=0.25,
        ),
    ]  # fmt: skip
    for one, other in zip(found.graph.node, expected_nodes, strict=True):
        assert sorted(one.attribute, key=lambda a: a.name) == sorted(other.attribute, key=lambda a: a.name)
        del one.attribute[:], other.attribute[:]
        other.domain = other.domain  # the writer names the empty domain, too
        assert one == other
    (weight,) = found.graph.initializer
    assert (list(weight.dims), weight.data_type) == ([300, 2], TensorProto.FLOAT)
    assert weight.data_location == TensorProto.EXTERNAL
    assert {entry.key: entry.value for entry in weight.external_data} == {
        "location": "weights.bin", "offset": "4096", "length": "2400",
    }  # fmt: skip
    assert found.graph.input[0] == helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, "T", 300))
    assert found.graph.output[0].type.tensor_type.shape == onnx.TensorShapeProto()
    assert {one.domain: one.version for one in found.opset_import} == {"": 13, "com.microsoft": 1}
    assert found.ir_version == 8


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_whole_number_survives(value):
    found = onnx.load_from_string(model([Node("A", (), (), "", (("v", value),))], [], [], [], 13, 8))
    assert found.graph.node[0].attribute[0].i == value


@pytest.fixture
def run(tmp_path):
    """A function: (kernel, feeds) -> outputs."""

    def go(kernel, feeds):
        kernels.write_weights(str(tmp_path), kernel.weight_bytes, 0)
        (tmp_path / "model.onnx").write_bytes(kernel.model)
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        return session.run([port.name for port in kernel.outputs if not port.name.endswith(".new")], feeds)

    return go


def weights(size):
    """What `write_weights` writes first."""
    return np.random.RandomState(0).uniform(-kernels.LIMIT, kernels.LIMIT, 2**18).astype(np.float32)[:size]


def test_a_linear_is_the_product_with_its_own_weights(run):
    x = np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32)
    first, second = run(kernels.linears("fp32", 96, 64, 2, True), {"x": x})
    values = weights(2 * 96 * 64 + 2048)
    np.testing.assert_allclose(first, x @ values[: 96 * 64].reshape(64, 96), rtol=1e-4, atol=1e-5)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_quantised_linear_is_that_of_the_exporter(run, form):
    rows, columns, bits = 64, 256, kernels.BITS[form]
    x = np.random.default_rng(0).normal(size=(1, 2, columns)).astype(np.float32)
    (found,) = run(kernels.linears(form, rows, columns, 1, True), {"x": x})
    raw = weights(2**18).tobytes()
    size = rows * columns * bits // 8
    codes = np.frombuffer(raw[:size], np.uint8).reshape(rows, 2, 128 * bits // 8)
    place = -(-size // kernels.PAGE) * kernels.PAGE
    scales = np.frombuffer(raw[place : place + 4 * rows * 2], np.float32).reshape(rows, 2)
    expected = x @ dequantize(Quantized(codes, scales, bits, 128)).T
    assert np.sqrt(np.square(found - expected).mean()) < 0.05 * np.sqrt(np.square(expected).mean())


def test_a_head_in_slices_is_the_product_with_its_table(run, monkeypatch):
    rows, columns = 2500, 16
    assert kernels.SLICE_BYTES == graph.HEAD_SLICE_BYTES
    monkeypatch.setattr(kernels, "SLICE_BYTES", 1)
    (found,) = run(kernels.tables("fp32", rows, columns, True), {"ids": np.array([7])})
    table = weights(rows * columns).reshape(rows, columns)
    np.testing.assert_allclose(found[0], table @ table[7], rtol=1e-4, atol=1e-6)


def test_an_attention_over_equal_values_gives_that_value(run):
    kernel = kernels.attentions(128, 2, 32, 1, True)
    feeds = {"x": np.zeros((1, 4, 384), np.float32), "last": np.array([3], np.int32), "total": np.array(4, np.int32)}
    feeds |= {name: np.zeros((1, 2, 32, 64), np.float32) for name in ("k0", "v0")}
    feeds["x"][..., 256:] = 0.75
    (found,) = run(kernel, feeds)
    np.testing.assert_allclose(found, 0.75, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_every_planned_graph_opens_and_runs(run, fused):
    formats = ("fp32", "int8", "int4") if fused else ("fp32", "int8")
    machine = plan.Machine(plan.MB // 8, 64 * plan.MB, (1,), formats, fused)
    for task in plan.tasks(machine):
        if task.kind in ("choose", "decoder") or task.count * task.rows * task.columns > 2e6:
            continue
        kernel = plan.kernel_of(task, fused)
        feeds = {}
        for port in kernel.inputs:
            shape = [2 if axis == "T" else axis for axis in port.shape]
            feeds[port.name] = np.full(shape, 1, np.float32 if port.kind == FLOAT else np.int32)
        if task.kind == "attention" and fused:
            feeds["total"] = np.array(2, np.int32)
        for value in run(kernel, feeds):
            assert np.isfinite(value).all(), task


@pytest.mark.parametrize("uses", [1, 3])
@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_the_probes_decoder_is_the_exporters(form, uses, tmp_path):
    """The same operators in the same order, with the same attributes, as a bundle of this geometry."""
    block = Block(width=64, ffn_ratio=1.5, depth=uses, shared=uses > 1)
    arch = Architecture(blocks=(block,) * 2, vocab=128, head_size=32, context=32)
    build_graph(random_source(arch, "tiny"), "fused", 32, form).save(tmp_path)
    exported = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    kernel = decoder_graph.decoder(form, 64, 96, 2, 2, 128, 32, uses)
    assert kernel.weight_bytes == decoder_graph.decoder(form, 64, 96, 2, 2, 128, 32).weight_bytes
    ours = onnx.load_from_string(kernel.model).graph
    assert list(ours.input) == list(exported.input)
    assert list(ours.output) == list(exported.output)

    def kinds(nodes):
        def attributes(node):
            return sorted((one.name, helper.get_attribute_value(one)) for one in node.attribute)

        return sorted((node.op_type, attributes(node)) for node in nodes if node.op_type != "Constant")

    def plain(found):  # epsilon is a float32 of the same value
        return [(op, [(name, pytest.approx(value)) for name, value in attributes]) for op, attributes in found]

    assert plain(kinds(ours.node)) == kinds(exported.node)
