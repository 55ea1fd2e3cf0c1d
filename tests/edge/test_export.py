"""A bundle as a whole: its description, its files, its graph, its refusals, and its life without us."""

import hashlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import MptConfig, MptForCausalLM

from merino_edge.design.designer import design
from merino_edge.design.space import Space
from merino_edge.export.dialects.external_data import PAGE
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source, random_source
from merino_edge.families import operators
from merino_edge.families.designed import Architecture
from merino_edge.families.opt import OptArchitecture
from merino_edge.profiles.reading import list_profiles, load_profile, profile_ids
from merino_runtime.api import selftest
from merino_runtime.backends import open_backend
from merino_runtime.bundle import Threads, load_bundle
from merino_runtime.errors import MerinoError

FORMATS = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
DIALECTS = ("fused", "portable")
OPT = OptArchitecture(
    width=64, layers=2, heads=2, ffn_width=96, embed_width=32, vocab=300, context=64, pre_norm=False
)


@pytest.fixture(params=DIALECTS)
def dialect(request):
    return request.param


@pytest.fixture
def folder(bundle_dirs, dialect):
    return Path(bundle_dirs[dialect])


def described(folder):
    return json.loads((folder / "bundle.json").read_text())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def documented_keys():
    _, table = FORMATS.read_text().split("`bundle.json`, all keys required:")
    rows = [line for line in table.split("\n### ")[0].splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_bundle_json_has_exactly_the_documented_keys(folder):
    assert len(documented_keys()) > 20
    assert set(described(folder)) == documented_keys() == load_bundle(str(folder))._asdict().keys() - {"folder"}


def test_bundle_json_says_what_the_model_is(folder, dialect, tiny_arch):
    description = described(folder)
    ops = tiny_arch.operators
    counts = {
        "params": operators.params(ops),
        "flops_per_token": operators.decode_flops(ops),
        "head_flops": 2 * 300 * 32,
        "weight_bytes": operators.weight_bytes(ops, "fp32"),
        "decode_weight_bytes": operators.decode_weight_bytes(ops, "fp32"),
        "kv_bytes": operators.kv_bytes(ops, 64),
    }
    assert {key: description[key] for key in counts} == counts
    recent = [name for name in profile_ids() if dialect == "portable" or name != "jetson-nano"]  # ONNX Runtime 1.10
    facts = {
        "schema": 2, "name": "tiny", "family": "merino", "precision": "fp32", "dialect": dialect,
        "weights": "trained", "context": 64, "vocab": 300, "stop_ids": [0], "boards": recent,
    }
    assert {key: description[key] for key in facts} == facts
    assert Architecture.model_validate(description["architecture"]) == tiny_arch
    layers = [(layer["heads"], layer["head_size"]) for layer in description["kv_layers"]]
    assert layers == [(1, 32), (2, 32), (2, 32)]
    assert len(description["golden"]["greedy_ids"]) == 16


def test_every_file_of_the_model_is_listed_with_its_size_and_hash(folder, dialect):
    listed = {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in described(folder)["files"]}
    expected = {
        name: (len(data), hashlib.sha256(data).hexdigest())
        for name, data in contents(folder).items() if name not in ("bundle.json", "merino.pyz")
    }
    assert listed == expected
    others = {"genai_config.json", "tokenizer_config.json"} if dialect == "fused" else set()
    assert set(expected) == {"model.onnx", "model.onnx.data", "tokenizer.json", *others}


def test_inputs_and_outputs_are_the_documented_ones(folder, dialect):
    description = described(folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    types = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}
    # Names in the graph, and what the runtime binds for one sequence.
    lengths = {"past_sequence_length": 64, "total_sequence_length": 64, "batch_size": 1}
    for key, infos in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        tensors = [(info.name, info.type.tensor_type) for info in infos if info.name != "first_logits"]
        assert description[key] == [
            {
                "name": name,
                "dtype": types[tensor.elem_type],
                "shape": [lengths.get(dim.dim_param, dim.dim_param) or dim.dim_value for dim in tensor.shape.dim],
            }
            for name, tensor in tensors
        ]
    batches = [
        info.type.tensor_type.shape.dim[0] for info in (*model.graph.input, *model.graph.output)
        if info.name != "first_logits"
    ]  # fmt: skip
    assert [info.name == "first_logits" for info in model.graph.input].count(True) == (dialect == "fused")
    assert {axis.dim_param or axis.dim_value for axis in batches} == ({"batch_size"} if dialect == "fused" else {1})
    shapes = {port["name"]: port["shape"] for port in description["inputs"] + description["outputs"]}
    assert shapes["input_ids"] == [1, "sequence"]
    assert shapes["logits"] == [1, 1, 300]
    for index, heads in enumerate([1, 2, 2]):
        for part in ("key", "value"):
            cache = [1, heads, 64, 32]
            assert shapes[f"past_key_values.{index}.{part}"] == cache
            assert shapes[f"present.{index}.{part}"] == (cache if dialect == "fused" else [1, heads, "sequence", 32])
    assert shapes["attention_mask"] == [1, "total" if dialect == "fused" else 64]
    assert ("position_ids" in shapes) == (dialect == "portable")


def test_the_same_model_gives_the_same_bytes(folder, dialect, tiny_checkpoint, tmp_path):
    again = export(load_source(str(tiny_checkpoint)), tmp_path / "again", ExportRequest(dialect=dialect))
    assert contents(again.folder) == contents(folder)
    assert again.error < 1e-4
    design_like = Architecture(blocks=[{"width": 64, "ffn_ratio": 1.0, "depth": 1}], vocab=300, context=32)
    for name in ("a", "b"):
        export(random_source(design_like, "seeded"), tmp_path / name, ExportRequest(dialect=dialect))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("source", ["tiny", "opt"])
def test_weights_are_stored_once(source, dialect, tiny_checkpoint, decoder, tmp_path):
    """Tied and shared ones too: what is beside the parameters are rotary tables and scalars of the graph."""
    decoder(OPT).save_pretrained(tmp_path / "opt")
    what = load_source(str(tiny_checkpoint if source == "tiny" else tmp_path / "opt"))
    bundle = export(what, tmp_path / "bundle", ExportRequest(dialect=dialect)).folder
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    tables = 2 * what.arch.context * what.arch.head_size // 2 if source == "tiny" else 0
    inside = sum(math.prod(tensor.dims) for tensor in floats if tensor.dims and not tensor.external_data)
    spans = stored_spans(model)
    stored = sum(length for _, length in spans) // 4
    assert inside + stored == operators.params(what.arch.operators) + tables
    assert all(start + length <= later for (start, length), (later, _) in itertools.pairwise(spans))
    size = (bundle / "model.onnx.data").stat().st_size
    assert size <= 4 * stored + PAGE * len(spans)
    assert all(offset % PAGE == 0 for offset, _ in spans)
    assert (bundle / "model.onnx").stat().st_size < 100_000
    embedding = what.model.get_input_embeddings().weight.detach().numpy().tobytes()
    assert (bundle / "model.onnx.data").read_bytes().count(embedding) == 1


def stored_spans(model):
    """(offset, length) of the data file's distinct tensors: what two constants share counts once."""
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer]
    return sorted({(int(place["offset"]), int(place["length"])) for place in places if place})


def model_values(bundle):
    model = onnx.load(bundle / "model.onnx")
    floats = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    return [onnx.numpy_helper.to_array(tensor) for tensor in floats]


WIDE = Architecture(blocks=[{"width": 32, "ffn_ratio": 1.0, "depth": 1}], vocab=2500, head_size=32, context=32)


def test_a_large_fused_head_reads_the_stored_table_in_slices(tmp_path, monkeypatch):
    """The export proves it equal to torch; the slices begin at pages of the table's own bytes."""
    monkeypatch.setattr("merino_edge.export.dialects.fused.HEAD_SLICE_BYTES", 1)
    bundle = export(random_source(WIDE, "wide"), tmp_path / "wide").folder
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    heads = [tensor for tensor in model.graph.initializer if tensor.name.startswith("embed_tokens.weight.")]
    assert [tensor.dims[0] for tensor in heads] == [1024, 1024, 452]
    (table,) = (tensor for tensor in model.graph.initializer if tensor.name == "embed_tokens.weight")
    start, *offsets = (int(tensor.external_data[1].value) for tensor in [table, *heads])
    assert [offset - start for offset in offsets] == [0, 1024 * 128, 2048 * 128]
    assert (bundle / "model.onnx.data").stat().st_size < 2500 * 128 + 100_000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_no_constants_of_a_portable_graph_overlap(precision, tmp_path):
    """TensorRT's parser refuses them: the head is one matmul over the embedding's own constant."""
    bundle = export(
        random_source(WIDE, "wide"), tmp_path / "wide", ExportRequest(dialect="portable", precision=precision)
    ).folder
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    places = sorted(
        (int(where["offset"]), int(where["length"]))
        for where in ({entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer)
        if where
    )
    assert len(places) > 4
    assert all(offset + length <= after for (offset, length), (after, _) in itertools.pairwise(places))
    if precision != "int8":
        (matmul,) = (node for node in graph.node if node.op_type == "Gemm")
        (gather,) = (node for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids")
        assert matmul.input[1] == gather.input[0]


@pytest.mark.parametrize("source", ["tiny", "opt"])
def test_a_portable_graph_is_plain_onnx_of_opset_13(source, tiny_checkpoint, tmp_path):
    what = load_source(str(tiny_checkpoint)) if source == "tiny" else random_source(OPT, "tiny-opt")
    bundle = export(what, tmp_path / "bundle", ExportRequest(dialect="portable")).folder
    onnx.checker.check_model(str(bundle / "model.onnx"), full_check=True)
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert model.ir_version == 8
    assert {node.domain for node in model.graph.node} == {""}
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"LayerNormalization", "Gelu", "Trilu", "Mod", "OneHot", "SimplifiedLayerNormalization"}
    assert {"MatMul", "Softmax", "Gather"} <= kinds
    for kind in kinds:
        assert onnx.defs.get_schema(kind, max_inclusive_version=13).since_version <= 13
    assert all(np.isfinite(value).all() and np.abs(value).max() < 65504 for value in model_values(bundle))


@pytest.mark.parametrize("context", [8, 11])
def test_any_allowed_context_can_be_exported(tiny_checkpoint, tmp_path, dialect, context):
    exported = export(
        load_source(str(tiny_checkpoint)), tmp_path / "bundle", ExportRequest(dialect=dialect, context=context)
    )
    bundle = load_bundle(str(exported.folder))
    assert bundle.context == context
    assert bundle.kv_bytes == (1 + 2 + 2) * 32 * 2 * 4 * context
    golden = bundle.golden
    assert min(len(golden.prompt_ids), len(golden.greedy_ids)) >= 2
    assert selftest(bundle, open_backend(bundle)) is None


@pytest.mark.parametrize("context", [2, 4, 7])
def test_a_decoder_of_a_very_short_context_is_exported(tmp_path, context):
    arch = Architecture(blocks=[{"width": 64, "ffn_ratio": 1.0, "depth": 1}], vocab=300, context=context)
    bundle = load_bundle(str(export(random_source(arch, "short"), tmp_path / "bundle").folder))
    assert bundle.context == context and selftest(bundle, open_backend(bundle)) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"context": 65}, "--context 65 .* 8 to 64"),
        ({"context": 7}, "--context 7 .* 8 to 64"),
        ({"context": 0}, "--context 0 "),
        ({"dialect": "esperanto"}, "--dialect esperanto .*fused, portable"),
        ({"precision": "int3"}, "--precision int3 .*fp32, fp16, int8, int4"),
        ({"precision": "int4", "dialect": "portable"}, "rows of 48.*--precision fp32"),
        ({"precision": "int4"}, "rows of 48.*--precision fp32"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_is_written(tiny_checkpoint, tmp_path, keys, message):
    with pytest.raises(MerinoError, match=message):
        export(load_source(str(tiny_checkpoint)), tmp_path / "bundle", ExportRequest(**keys))
    assert list(tmp_path.iterdir()) == []


def written(path, text):
    path.write_text(text)
    return str(path)


def test_what_is_nothing_to_export_is_refused(tmp_path, tiny_checkpoint):
    (tmp_path / "empty").mkdir()
    MptForCausalLM(MptConfig(n_layers=1, n_heads=1, d_model=8, vocab_size=9)).save_pretrained(tmp_path / "mpt")
    for name, config in (("odd", '{"model_type": "no-such-model"}'), ("unnamed", '{"hidden_size": 8}')):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "config.json", config)
        written(tmp_path / name / "model.safetensors", "")
    bad = {
        "opt-30b": "'opt-30b' names no model: .*near names: .*opt-350m",
        str(tmp_path / "empty"): "no config.json",
        str(tmp_path / "mpt"): "'mpt' model: exported are merino, opt, llama, ",
        str(tmp_path / "unnamed"): "unnamed/config.json has no model_type, .*: merino, opt, llama, ",
        str(tmp_path / "odd"): "is a 'no-such-model' model: exported are merino, opt, llama, ",
        written(tmp_path / "torn.json", "{"): "torn.json is not JSON",
        written(tmp_path / "other.json", '{"a": 1}'): "nor an architecture: .*blocks: missing.*a: unknown",
        written(tmp_path / "list.json", "[1]"): "neither a design.json nor an architecture",
        written(tmp_path / "half.json", '{"architecture": {}}'): "half.json is not a design.json: .*device: missing",
    }
    for what, message in bad.items():
        with pytest.raises(MerinoError, match=message):
            load_source(what)
    with pytest.raises(MerinoError, match="--set weights goes with a model of the catalog"):
        load_source(str(tiny_checkpoint), weights=tmp_path)
    with pytest.raises(MerinoError, match="'merino' model, opt-350m is 'opt'"):
        load_source("opt-350m", weights=tiny_checkpoint)


def test_weights_that_do_not_fit_or_load_are_refused(tiny_checkpoint, decoder, tmp_path):
    decoder(OPT).save_pretrained(tmp_path / "opt")
    with pytest.raises(MerinoError, match="is not opt-350m: it has 2 layers of 64.*24 layers of 1024"):
        load_source("opt-350m", weights=tmp_path / "opt")
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(MerinoError, match="weights in .* do not load"):
        load_source(str(broken))


@pytest.mark.slow
def test_boards_are_those_whose_free_memory_holds_it(tmp_path):
    """An embedding of 107 MB and a cache of 156 MB, beside the runtime: too much for the smallest board."""
    shared = {"width": 256, "ffn_ratio": 1.0, "depth": 8, "shared": True}
    arch = Architecture(blocks=[shared], vocab=110_000, context=10_000)
    boards = export(random_source(arch, "large"), tmp_path / "bundle").bundle.boards
    large = [board.id for board in list_profiles() if board.memory.free_mb.value > 1000]
    assert list(boards) == [name for name in large if name != "jetson-nano"]  # whose ONNX Runtime is older
    assert list(boards) != profile_ids()


@pytest.fixture
def liar(tiny_checkpoint, tiny_arch, decoder):
    """A source whose graph is not its model: another model's weights go into the graph."""
    source = load_source(str(tiny_checkpoint))

    class Liar(type(source.model)):
        def state_dict(self, *_, **__):
            return decoder(tiny_arch, seed=99).state_dict()

    source.model.__class__ = Liar
    return source


def test_a_failed_export_leaves_nothing_and_changes_nothing(liar, folder, dialect, tmp_path):
    with pytest.raises(MerinoError, match="differs from torch"):
        export(liar, tmp_path / "new", ExportRequest(dialect=dialect))
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(folder, tmp_path / "old")
    with pytest.raises(MerinoError, match="differs from torch"):
        export(liar, tmp_path / "old", ExportRequest(dialect=dialect))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert contents(tmp_path / "old") == contents(folder)


@pytest.mark.parametrize("rows", [1, 300])
def test_a_model_whose_weights_are_ruined_is_not_delivered(tiny_checkpoint, dialect, tmp_path, rows):
    """One token that is not a number, or all of them. A download may be so: training is not to blame."""
    source = load_source(str(tiny_checkpoint))
    with torch.no_grad():
        source.model.embed_tokens.weight[:rows] = math.nan
    with pytest.raises(MerinoError, match="the weights of .* not finite, in .*embed_tokens.weight: copy or download"):
        export(source, tmp_path / "bundle", ExportRequest(dialect=dialect))
    assert list(tmp_path.iterdir()) == []


def test_an_old_bundle_is_replaced_and_nothing_else_is(folder, dialect, tiny_checkpoint, tmp_path):
    source = load_source(str(tiny_checkpoint))
    target = tmp_path / "bundle"
    target.mkdir()
    export(source, target, ExportRequest(dialect=dialect, context=32))  # an empty folder
    export(source, target, ExportRequest(dialect=dialect))
    assert contents(target) == contents(folder)
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    (mine / "thesis.tex").write_text("x")
    before = contents(mine)
    with pytest.raises(MerinoError, match="mine holds other files, which are not replaced"):
        export(source, mine, ExportRequest(dialect=dialect))
    with pytest.raises(MerinoError, match="is a file"):
        export(source, mine / "thesis.tex", ExportRequest(dialect=dialect))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "mine"]
    assert contents(mine) == before


ALONE = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "ditable" not in repr(finder)]  # our installed packages
pyz = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    runpy.run_path(pyz, run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
ours = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("merino_")}
assert ours and all(path.startswith(pyz) for path in ours.values()), ours
assert not {"torch", "transformers", "onnx", "scipy", "merino_edge"} & set(sys.modules)
"""


def test_a_bundle_runs_by_itself(folder, tmp_path):
    """`python3 merino.pyz generate`, from an empty folder, isolated from this checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    verb = ["generate", str(folder), "The river", "-n", "8", "--set=seed=1", "--set=ignore_eos=true"]
    pyz = str(folder / "merino.pyz")

    def run(*call):
        call = [sys.executable, "-I", *call]
        return subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, check=False)

    direct = run(pyz, *verb)
    assert direct.returncode == 0, direct.stderr
    assert direct.stdout.strip()
    assert b"8 tokens" in direct.stderr
    alone = run("-c", ALONE, pyz, *verb)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout == direct.stdout
    assert run(pyz, "selftest", str(folder)).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_has_the_format_and_the_threads_that_its_design_planned_for(tmp_path):
    space = Space(widths=(64, 128), depths=(1, 2), ffn_ratios=(1.0,))
    board = load_profile("raspberry-pi-5")
    request = {"space": space, "context": 32, "prompt": 16, "vocabs": [300], "precisions": ["int8"], "kvs": [None]}
    designed = design(board, {"decode_ms": 2}, **request)
    path = tmp_path / "design.json"
    path.write_text(designed.to_json())
    planned = export(load_source(str(path)), tmp_path / "planned").bundle
    assert planned.precision == "int8"
    assert planned.threads == Threads(
        decode=designed.predicted.decode_threads, prefill=designed.predicted.prefill_threads
    )
    other = export(load_source(str(path)), tmp_path / "other", ExportRequest(precision="fp32")).bundle
    assert (other.precision, other.threads) == ("fp32", Threads(None, None))


def test_a_bundle_exported_again_keeps_the_threads_that_were_planned_for_its_format(tiny_checkpoint, tmp_path):
    export(load_source(str(tiny_checkpoint)), tmp_path / "first")
    described_as(tmp_path / "first", threads={"prefill": 4, "decode": 2})
    source = load_source(str(tmp_path / "first"))
    again = export(source, tmp_path / "again", ExportRequest(dialect="portable", context=32)).bundle
    assert (again.precision, again.threads) == ("fp32", Threads(prefill=4, decode=2))
    assert export(
        source, tmp_path / "int8", ExportRequest(dialect="portable", precision="int8")
    ).bundle.threads == Threads(None, None)


def described_as(folder, **values):
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_checkpoint_carries_the_design_that_it_was_trained_from(tiny_checkpoint, tiny_arch, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    space = Space(widths=(64,), depths=(1,), ffn_ratios=(1.0,))
    board = load_profile("raspberry-pi-5")
    request = {"space": space, "context": 32, "prompt": 16, "vocabs": [300], "precisions": ["int8"], "kvs": [None]}
    other = design(board, {"decode_ms": 9}, **request)
    path = tmp_path / "checkpoint" / "design.json"
    path.write_text(other.to_json())
    assert load_source(str(tmp_path / "checkpoint")).design is None  # another geometry
    own = other.model_copy(update={"architecture": tiny_arch})
    path.write_text(own.to_json())
    assert load_source(str(tmp_path / "checkpoint")).design == own
