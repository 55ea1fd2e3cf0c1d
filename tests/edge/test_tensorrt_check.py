"""`check --tensorrt`: no graph of ours is refused, and each thing that TensorRT refuses is named by its node. Designs
and OPT through the TensorRT backend on a stand-in, beside ONNX Runtime on the same graph."""

import gc
import json

import numpy as np
import onnx
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from mutations import fuzz, mutated_bytes, taken
from onnx import TensorProto, helper, numpy_helper
from sample_models import SMALL, graph_bundle, small

from merino_edge.bundles.tensorrt import check_bundle
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, random_source
from merino_edge.families.designed import Architecture
from merino_edge.families.opt import OptArchitecture
from merino_edge.families.zoo import model
from merino_runtime.backends import open_backend
from merino_runtime.backends.engine_build import build_engine
from merino_runtime.backends.engine_file import HEADER_BYTES
from merino_runtime.bundle import load_bundle
from tests.tensorrt_stand_in import VERSIONS, Gpu, put_in
from tests.tensorrt_stand_in.building import PLAN

PARSERS = ("8.2", "10.3")
TINY = Architecture(blocks=[{"width": 64, "ffn_ratio": 1.0, "depth": 1}], vocab=300, head_size=32, context=64)
OPT = OptArchitecture(
    width=64, layers=2, heads=2, ffn_width=96, embed_width=32, vocab=300, context=64, pre_norm=False
)  # fmt: skip


designs = st.builds(
    lambda head_size, blocks, vocab, context: Architecture(
        blocks=[
            {"width": width, "ffn_ratio": ratio, "depth": depth, "shared": shared}
            for width, (ratio, depth, shared) in zip(sorted(64 * size for size, *_ in blocks),
                                                     [rest for _, *rest in blocks], strict=True)
        ],
        vocab=vocab, head_size=head_size, context=context,
    ),
    st.sampled_from([32, 64]),
    st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from([1.0, 1.5, 2.5, 4.0]), st.integers(1, 3), st.booleans()),
        min_size=1, max_size=4,
    ),
    st.integers(300, 151_936), st.integers(8, 2048),
)  # fmt: skip


@examples(25)
@given(arch=designs, precision=st.sampled_from(["fp32", "fp16"]))
def test_no_design_is_refused(arch, precision, tmp_path_factory):
    bundle = graph_bundle(tmp_path_factory.mktemp("design") / "bundle", arch, precision=precision)
    for version in PARSERS:
        checked = check_bundle(bundle, version)
        assert checked.problems == () and checked.opset == 13


PADDED = Architecture(
    blocks=[{"width": width, "ffn_ratio": 1.0, "depth": 1} for width in (64, 128, 96, 96)], vocab=300, head_size=32,
    context=64, width_change="padding",
)  # fmt: skip
PUBLISHED = {name: model(name).geometry for name in ("opt-125m", "opt-350m")}
PUBLISHED |= {name: small(name) for name in SMALL} | {"padded": PADDED}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_published_family_is_refused(name, precision, tmp_path):
    bundle = graph_bundle(tmp_path / "bundle", PUBLISHED[name], precision=precision)
    assert [check_bundle(bundle, version).problems for version in PARSERS] == [(), ()]


@pytest.mark.parametrize("arch", [TINY, OPT], ids=["design", "opt"])
@pytest.mark.parametrize("dialect, precision, operators", [
    ("fused", "fp32", {"GroupQueryAttention"}), ("fused", "fp16", {"GroupQueryAttention"}),
    ("fused", "int8", {"GroupQueryAttention", "MatMul8", "Rows8"}), ("fused", "int4", {"MatMul4"}),
    ("portable", "int8", {"DynamicQuantizeLinear", "MatMulInteger"}),
    ("portable", "int4", {"MatMul4", "MatMulInteger"}),
])  # fmt: skip
def test_other_formats_are_refused_by_each_of_their_nodes(arch, dialect, precision, operators, tmp_path):
    bundle = graph_bundle(tmp_path / "bundle", arch, dialect, precision)
    graph = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False).graph
    for version in PARSERS:
        named = {problem.node for problem in check_bundle(bundle, version).problems}
        nodes = {node.name for node in graph.node if node.op_type in operators}
        assert nodes and nodes <= named


class Graph:
    """A portable graph that is edited in its file."""

    def __init__(self, bundle):
        self.bundle = bundle
        self.path = f"{bundle.folder}/model.onnx"
        self.model = onnx.load(self.path, load_external_data=False)
        self.graph = self.model.graph

    def node(self, kind):
        return next(node for node in self.graph.node if node.op_type == kind)

    def set_constant(self, name, value):
        next(one for one in self.graph.initializer if one.name == name).CopyFrom(numpy_helper.from_array(value, name))

    def before(self, node, kind, inputs=None, **attributes):
        """Insert an operator before the first input of `node`; returns its name."""
        place = next(place for place, other in enumerate(self.graph.node) if other.name == node.name)
        name = f"inserted_{kind}"
        made = helper.make_node(kind, inputs or [node.input[0]], [name], name=name, **attributes)
        node.input[0] = name
        self.graph.node.insert(place, made)
        return name

    def index_from_an_input(self, node, count):
        self.graph.input.append(helper.make_tensor_value_info("wish", TensorProto.INT64, [count]))
        node.input[1] = "wish"
        return node.name


def relabel(graph, kind):
    node = graph.node(kind)
    node.domain = "com.microsoft"
    return node.name


def other_operator(graph, kind, opset=13):
    graph.model.opset_import[0].version = opset
    return graph.before(graph.node("Softmax"), kind)


def cast_to(graph, code):
    node = graph.node("Cast")
    node.attribute[0].i = code
    return node.name


def uint8_table(graph):
    graph.set_constant("embed_tokens.weight", np.zeros((300, 64), np.uint8))
    return graph.node("Gather").name


def no_type(graph):
    graph.graph.input[1].type.tensor_type.elem_type = 0
    return "attention_mask"


def open_axis(graph):
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return "input_ids"


def nine_dimensions(graph):
    graph.graph.initializer.append(numpy_helper.from_array(np.arange(6), "six"))
    return graph.before(graph.node("Tanh"), "Unsqueeze", [graph.node("Tanh").input[0], "six"])


def opset(number):
    def edit(graph):
        graph.model.opset_import[0].version = number
        return "model.onnx"

    return edit


EDITS = {
    "an operator of ONNX Runtime's": lambda graph: relabel(graph, "Softmax"),
    "BitShift": lambda graph: graph.before(graph.node("Softmax"), "BitShift"),
    "cast to uint8": lambda graph: cast_to(graph, TensorProto.UINT8),
    "cast to a string": lambda graph: cast_to(graph, TensorProto.STRING),
    "cast to no type": lambda graph: cast_to(graph, 99),
    "a table of uint8": uint8_table,
    "a rank from an input": lambda graph: graph.index_from_an_input(graph.node("Reshape"), "count"),
    "axes from an input": lambda graph: graph.index_from_an_input(graph.node("Unsqueeze"), 1),
    "no type": no_type,
    "an open axis": open_axis,
    "nine dimensions": nine_dimensions,
    "opset 21": opset(21),
    "no opset": lambda graph: graph.model.ClearField("opset_import") or "model.onnx",
}
ONLY = {  # (edit, the version that refuses it, one that does not)
    "opset 18": (opset(18), "8.2", None),
    "opset 8": (opset(8), "10.3", None),
    "Trilu": (lambda graph: other_operator(graph, "Trilu", 14), "8.2", "10.3"),
    "Reciprocal": (lambda graph: other_operator(graph, "Reciprocal"), "8.2", "10.3"),
    "bfloat16": (lambda graph: cast_to(graph, TensorProto.BFLOAT16), "8.2", None),
}


@pytest.fixture
def edited(tmp_path):
    """A function: an edit -> (the edited bundle, the name that the problem must have)."""

    def edit(how):
        graph = Graph(graph_bundle(tmp_path / "bundle", TINY))
        assert check_bundle(graph.bundle, "8.2").problems == ()
        name = how(graph)
        onnx.save_model(graph.model, graph.path)
        return graph.bundle, name

    return edit


@pytest.mark.parametrize("version", PARSERS)
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_graph_is_refused_by_the_edited_node(edit, version, edited):
    bundle, name = edited(edit)
    problems = check_bundle(bundle, version).problems
    assert name in {problem.node for problem in problems}, problems


@pytest.mark.parametrize("edit, refuses, takes", ONLY.values(), ids=ONLY)
def test_versions_differ(edit, refuses, takes, edited):
    bundle, name = edited(edit)
    problems = check_bundle(bundle, refuses).problems
    assert name in {problem.node for problem in problems}, problems
    if takes:
        assert check_bundle(bundle, takes).problems == ()


@pytest.mark.more
def test_a_damaged_graph_ends_in_problems_or_in_one_message(tmp_path):
    bundle = graph_bundle(tmp_path / "bundle", TINY)
    path = tmp_path / "bundle" / "model.onnx"

    def use(data):
        path.write_bytes(data)
        problems = taken(check_bundle, bundle, "8.2")
        return True if problems and problems.problems == () else None

    whole = path.read_bytes()
    fuzz(lambda chance: mutated_bytes(chance, whole), use)


def test_the_command_says_it_in_words(here, tmp_path):
    portable = export(random_source(TINY, "tiny"), tmp_path / "tiny", ExportRequest(dialect="portable")).folder
    code, out, _ = here("check", portable, "--tensorrt", "8.2")
    assert code == 0 and out.startswith("tiny: the parser of TensorRT 8.2 takes its graph:") and out.count("\n") == 1
    code, out, err = here("check", "embedded", "--tensorrt", "10.3")
    assert code == 1 and "GroupQueryAttention_" in out and "--dialect portable" in err
    code, out, err = here("check", portable, "--tensorrt", "9.1")
    assert code == 1 and out == "" and "8.2 or 10.3" in err


VOCAB = 211


def random_design(seed):
    """Any geometry the search may give, in small; contexts below and above one chunk of a prefill."""
    random = np.random.default_rng(seed)
    head_size = int(random.choice([32, 64]))
    widths = sorted(int(width) for width in random.choice([64, 96, 128, 192], random.integers(1, 4)))
    blocks = [
        {"width": width if width % head_size == 0 else 64, "ffn_ratio": float(random.choice([1.0, 1.5])),
         "depth": int(random.integers(1, 3)), "shared": bool(random.integers(2)),
         "kv_heads": 1 if random.integers(2) else None}
        for width in widths
    ]  # fmt: skip
    blocks.sort(key=lambda block: block["width"])
    return Architecture(blocks=blocks, vocab=VOCAB, head_size=head_size, context=int(random.choice([41, 70, 97])))


def opt(pre_norm):
    return OptArchitecture(
        width=64, layers=2, heads=2, ffn_width=96, embed_width=64 if pre_norm else 32, vocab=VOCAB, context=75,
        pre_norm=pre_norm,
    )  # fmt: skip


MODELS = {f"design {seed}": random_design(seed) for seed in range(8)}
MODELS.update({"opt pre-norm": opt(True), "opt post-norm": opt(False)})


@pytest.fixture(scope="module")
def bundle_of(decoder, tmp_path_factory):
    """A function: (a name of MODELS, precision) -> its portable bundle."""
    made = {}

    def of(name, precision="fp32"):
        if (name, precision) not in made:
            source = Source(name, MODELS[name], decoder(MODELS[name], seed=4), "random", "a test's", (), None)
            folder = tmp_path_factory.mktemp("designs") / "bundle"
            export(source, folder, ExportRequest(dialect="portable", precision=precision))
            made[name, precision] = load_bundle(str(folder), verify=False)
        return made[name, precision]

    return of


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Gpu()
    yield machine
    gc.collect()
    assert machine.violations == []
    assert machine.left() == []


def parts_of(seed, count):
    """Lengths of prefills, together `count` ids."""
    random = np.random.default_rng(seed)
    while count:
        part = min(count, int(random.choice([1, 2, 9, 30, 64])))
        count -= part
        yield part


@pytest.mark.parametrize("name", MODELS)
def test_the_same_ids_come_out(name, bundle_of, gpu, monkeypatch):
    bundle = bundle_of(name)
    other = open_backend(bundle, backend="onnxruntime")
    prompt = [(11 * place + 5) % VOCAB for place in range(bundle.context // 2)]
    for seed, version in enumerate(VERSIONS):
        put_in(gpu, version, monkeypatch)
        backend = open_backend(bundle, backend="tensorrt")
        other.truncate(0)
        for part in parts_of(seed, len(prompt)):
            new = prompt[backend.length : backend.length + part]
            logits, expected = backend.prefill(new), other.prefill(new)
        while True:
            assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()
            assert logits.argmax() == expected.argmax()
            if backend.length == bundle.context:
                break
            token = int(expected.argmax())
            logits, expected = backend.step(token), other.step(token)
        twin, ids = backend.fork(), backend.ids[: bundle.context // 3]
        for one in (twin, other):
            one.truncate(len(ids))
        assert np.abs(twin.prefill([1, 2, 3]) - other.prefill([1, 2, 3])).max() < 2e-5 * np.abs(expected).max()
        twin.close()
        backend.close()
    other.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["design 1", "opt pre-norm", "opt post-norm"])
def test_in_an_engine_of_float16_kernels_the_norms_and_nothing_else_are_float32(
    name, precision, bundle_of, gpu, monkeypatch, tmp_path
):
    put_in(gpu, VERSIONS[0], monkeypatch)
    bundle = bundle_of(name, precision)
    build_engine(bundle, True, None, lambda _: None)
    plan = json.loads(next(tmp_path.rglob("*.engine")).read_bytes()[HEADER_BYTES + len(PLAN) :])
    kinds = [each.partition("_")[0] for each in plan["pinned"]]
    norm = ["Mul", "ReduceMean", "Add", "Sqrt", "Div"]  # of RMSNorm; LayerNorm subtracts a mean before
    norm += ["ReduceMean", "Sub"] if name.startswith("opt") else []
    count = kinds.count("Sqrt")
    # The product before a LayerNorm's first mean is its own sum with the residual, which is no part of the norm's.
    extra = sorted(set(kinds) - set(norm))
    assert count >= 2 and extra == [] and [kinds.count(kind) for kind in ("Sqrt", "Div")] == [count, count]
    assert kinds.count("ReduceMean") == norm.count("ReduceMean") * count


def test_a_bundle_in_float16_runs_on_both_versions(bundle_of, gpu, monkeypatch):
    bundle = bundle_of("design 1", "fp16")
    other = open_backend(bundle, backend="onnxruntime")
    expected = other.prefill([5, 6, 7]).copy()
    other.close()
    for version in VERSIONS:
        put_in(gpu, version, monkeypatch)
        backend = open_backend(bundle, backend="tensorrt")
        assert np.abs(backend.prefill([5, 6, 7]) - expected).max() < 2e-2 * np.abs(expected).max()
        assert {field.dtype for field in backend._memory.caches} == {"float16"} and "fp16" in backend.engine
        backend.step(9)
        backend.step(8)
        backend.close()
