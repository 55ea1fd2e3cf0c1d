"""The axes of the designed family: gated convolutions, causal taps and n-gram tables."""

import hashlib
import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from sample_models import write_stories
from transformers import DynamicCache

from merino_edge.bundles.tensorrt import check_bundle
from merino_edge.design import enumeration
from merino_edge.design.costs import AtThreads
from merino_edge.design.designer import design
from merino_edge.design.score import MEASURED, existing_score
from merino_edge.design.space import Space
from merino_edge.design.space import architecture as space_architecture
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families.designed import Architecture, Block, Ngrams
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import kv_bytes, params
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.latency import GROUPS_NODES, NODES
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_edge.training.optimizer import optimizer_for
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
from merino_runtime.api import selftest
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

VOCAB, CONTEXT = 1500, 24  # ids above 1,023 have two parts in the cache
AXES = {
    "convolution": {"blocks": (Block(width=64, ffn_ratio=2, depth=4, attention_every=4, kv_heads=1),)},
    "taps": {"taps": True},
    "tables": {"ngrams": (Ngrams(order=2, rows=512), Ngrams(order=3, rows=700))},
}


def architecture(*axes):
    fields = {"blocks": (Block(width=64, ffn_ratio=2, depth=3),), "vocab": VOCAB, "head_size": 32, "context": CONTEXT}
    for axis in axes:
        fields |= AXES[axis]
    return Architecture(**fields)


def random_model(arch, seed=0):
    """Its axes have weights of the size of trained ones: tables and taps begin at zero."""
    torch.manual_seed(seed)
    model = build_model(arch)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2 if weight.ndim != 2 else weight.shape[1] ** -0.5)
    return model.eval()


CASES = [(axis,) for axis in AXES] + [tuple(AXES)]


@pytest.mark.parametrize("axes", CASES, ids="+".join)
def test_cached_steps_equal_one_pass(axes):
    model, ids = random_model(architecture(*axes)), torch.randint(VOCAB, (2, CONTEXT))
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache, parts = DynamicCache(config=model.config), []
        for start, end in ((0, 5), (5, 6), (6, 7), (7, 12), (12, CONTEXT)):
            parts.append(model(ids[:, start:end], cache=cache).logits)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
        cache.crop(9 - CONTEXT)  # a truncated cache continues with another text
        other = torch.cat((ids[:, :9], torch.randint(VOCAB, (2, 6))), 1)
        after = model(other[:, 9:], cache=cache).logits
        assert torch.allclose(after, model(other, use_cache=False).logits[:, 9:], atol=1e-4)


@pytest.mark.parametrize("axes", CASES, ids="+".join)
def test_samples_of_a_packed_row_do_not_see_each_other(axes):
    model, ids = random_model(architecture(*axes)), torch.randint(VOCAB, (1, 14))
    positions = torch.tensor([[*range(6), *range(8)]])
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits
        apart = torch.cat([model(part, use_cache=False).logits for part in (ids[:, :6], ids[:, 6:])], 1)
    assert torch.allclose(packed, apart, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blocks": ({"width": 64, "ffn_ratio": 2, "depth": 3, "attention_every": 4},)}, "at most depth 3"),
        ({"blocks": ({"width": 64, "ffn_ratio": 2, "depth": 3, "shared": True},), "taps": True}, "shared"),
        ({"ngrams": ({"order": 2, "rows": 2**31 + 1},)}, "2147483648"),
        ({"ngrams": ({"order": 2, "rows": 8}, {"order": 2, "rows": 9})}, "must differ"),
    ],
)
def test_impossible_axes_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        Architecture.model_validate({**architecture().model_dump(), **fields})


# Bundles

BY_DAY = [("fused", "int4"), ("fused", "int8"), ("portable", "int8")]
BY_NIGHT = [("fused", "fp32"), ("fused", "fp16"), ("portable", "fp32"), ("portable", "fp16"), ("portable", "int4")]


def exported(arch, folder, dialect="fused", precision="fp32", **more):
    source = Source("axes", arch, random_model(arch), "random", "drawn", (), None)
    return export(source, folder, ExportRequest(precision=precision, dialect=dialect, **more)).bundle


def logits_by_torch(arch, ids):
    with torch.no_grad():
        return random_model(arch)(torch.tensor([ids]), use_cache=False).logits[0].numpy()  # [T, V]


@pytest.mark.parametrize("dialect", ["fused", "portable"])
@pytest.mark.parametrize("axes", CASES, ids="+".join)
def test_every_step_of_a_bundle_equals_torch(axes, dialect, tmp_path):
    arch, ids = architecture(*axes), np.random.default_rng(1).integers(0, VOCAB, CONTEXT).tolist()
    bundle, expected = exported(arch, tmp_path / "bundle", dialect), logits_by_torch(arch, ids)

    def near(logits, place):
        np.testing.assert_allclose(logits, expected[place], atol=2e-3 * np.abs(expected).max())

    backend = open_backend(bundle)
    near(backend.prefill(ids[:1]), 0)  # no position before it
    near(backend.prefill(ids[1:3]), 2)
    for place in range(3, 8):
        near(backend.step(ids[place]), place)
    twin = backend.fork()
    near(backend.prefill(ids[8:20]), 19)
    backend.truncate(9)
    near(backend.step(ids[9]), 9)
    near(twin.prefill(ids[8:]), CONTEXT - 1)
    if dialect == "fused":
        rows = backend.rows(2)
        rows[0].prefill(ids[:6])
        rows[1].prefill(ids[:11])
        rows[0].step_ahead([(rows[0], ids[6]), (rows[1], ids[11])])
        near(rows[0].step(ids[6]), 6)
        near(rows[1].step(ids[11]), 11)


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=() if kind in BY_DAY else pytest.mark.nightly, id="-".join(kind))
    for kind in BY_DAY + BY_NIGHT
])  # fmt: skip
def test_every_format_computes_what_torch_does(kind, tmp_path):
    arch, ids = architecture(*AXES), np.random.default_rng(1).integers(0, VOCAB, CONTEXT).tolist()
    bundle, expected = exported(arch, tmp_path / "bundle", *kind), logits_by_torch(arch, ids)
    backend = open_backend(bundle)
    logits = [backend.prefill(ids[:5]).copy(), *(backend.step(one).copy() for one in ids[5:])]
    errors = np.square(logits - expected[4:]).mean() / np.square(expected).mean()
    assert errors < {"fp32": 1e-8, "fp16": 1e-4, "int8": 2e-3, "int4": 0.2}[kind[1]]
    assert selftest(bundle, backend) is None


def node_count(arch, folder, dialect, **more):
    exported(arch, folder, dialect, **more)
    return len(onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node)


@pytest.mark.parametrize(("dialect", "groups"), [("fused", False), ("fused", True), ("portable", False)])
@pytest.mark.parametrize("axes", [("taps",), ("tables",)], ids="+".join)
def test_the_cost_model_counts_the_nodes_of_the_graph(axes, dialect, groups, tmp_path):
    with_axis, plain = architecture(*axes), architecture()
    nodes = NODES[dialect] | (GROUPS_NODES if groups else {})
    here, there = (
        node_count(arch, tmp_path / name, dialect, **({"precision": "int8", "kv": "fp32"} if groups else {}))
        for arch, name in ((with_axis, "axis"), (plain, "plain"))
    )
    counted = Counter(op.kind for op in with_axis.operators) - Counter(op.kind for op in plain.operators)
    predicted = sum(nodes[kind] * count for kind, count in counted.items())
    assert abs(here - there - predicted) <= 1


def test_costs_of_a_cache_of_inputs_are_those_of_the_bundle(tmp_path):
    arch = architecture(*AXES)
    bundle = exported(arch, tmp_path / "bundle")
    arrays = [model.state_dict()[name] for model in [random_model(arch)] for name in model.state_dict()]
    assert bundle.kv_bytes == kv_bytes(arch.operators, CONTEXT) == sum(
        2 * 4 * heads * size * CONTEXT for heads, size in arch.kv_layers
    )
    tied = VOCAB * arch.embed_width
    assert params(arch.operators) == sum(array.numel() for array in arrays) - tied


def test_a_float32_bundle_of_all_axes_is_a_source(tmp_path):
    arch = architecture(*AXES)
    bundle = exported(arch, tmp_path / "first")
    again = load_source(tmp_path / "first")
    for name, weight in random_model(arch).state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    portable = export(again, tmp_path / "second", ExportRequest(dialect="portable")).bundle
    assert portable.golden == bundle.golden


# Refusals


@pytest.mark.parametrize("axis", AXES)
def test_a_quantized_cache_of_inputs_is_refused_before_any_work(axis, tmp_path):
    with pytest.raises(MerinoError, match="cache in int8 is not possible"):
        exported(architecture(axis), tmp_path / "bundle", kv="int8")


def test_tables_are_refused_for_an_old_tensorrt_when_they_are_designed(tmp_path):
    shape = InferenceShape("fp32", CONTEXT, CONTEXT)
    old, new = load_profile("jetson-nano"), load_profile("jetson-orin-nano")
    tables, others = architecture("tables"), architecture("convolution", "taps")
    with pytest.raises(MerinoError, match=r"TensorRT 10.0 or later, and the board has 8.2.1"):
        cost_model(old, shape).predict(tables.operators)
    for profile, arch in ((new, tables), (new, others), (old, others)):
        plain = cost_model(profile, shape).predict(architecture().operators)
        assert cost_model(profile, shape).predict(arch.operators).decode_ms > plain.decode_ms
    needs = {need.name: need.min_version for need in exported(tables, tmp_path / "tables", "portable").backends}
    assert needs["tensorrt"] == "10.0"


@pytest.mark.parametrize("stated", [True, False])
def test_a_file_of_tables_that_is_too_short_is_refused_before_it_runs(stated, tmp_path):
    """`stated`: bundle.json states the length that the file has."""
    exported(architecture("tables"), tmp_path / "bundle")
    path, description = tmp_path / "bundle" / "model.onnx.data", tmp_path / "bundle" / "bundle.json"
    path.write_bytes(path.read_bytes()[:-4096])
    if stated:
        content = json.loads(description.read_text())
        entry = next(one for one in content["files"] if one["path"] == path.name)
        entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        description.write_text(json.dumps(content))
    with pytest.raises(MerinoError, match=r"model\.onnx\.data|given file_length"):
        open_backend(load_bundle(str(tmp_path / "bundle")))


@pytest.mark.parametrize("axis", AXES)
def test_portable_graphs_suit_tensorrt(axis, tmp_path):
    bundle = exported(architecture(axis), tmp_path / "bundle", "portable")
    assert check_bundle(bundle, "10.3").problems == ()
    assert bool(check_bundle(bundle, "8.2").problems) == (axis == "tables")


# Search


TABLES = ((), (Ngrams(order=2, rows=5000),), (Ngrams(order=2, rows=5000), Ngrams(order=3, rows=9000)))
OPEN = Space(
    widths=(32, 64, 320), depths=(2, 3, 5, 8), ffn_ratios=(1.0, 4.0), gated=(True, False), kv_heads=(1, None),
    attention_every=(1, 2, 4), taps=(False, True), ngrams=TABLES,
)  # fmt: skip


def members(space, vocab, tables):
    for kind, layer in enumerate(enumeration.kinds_of(space).layers):
        for place, depth in enumerate(space.depths):
            if layer.attention_every <= depth:
                yield (kind, place), space_architecture(layer, depth, vocab, 64, tables)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("board", ["raspberry-pi-zero-2w", "raspberry-pi-5"])
def test_costs_of_the_open_space_are_those_of_its_decoders(board, precision):
    model, vocab = cost_model(load_profile(board), InferenceShape(precision, 64, 16)), 512
    for tables in TABLES:
        costs = AtThreads(enumeration.costs_of(OPEN, model, vocab, np.array(OPEN.depths), True, tables), 0, 0)
        for place, arch in list(members(OPEN, vocab, tables))[::5]:
            predicted = model.predict_each(arch.operators)[0]
            for name in ("decode_ms", "prefill_ms", "memory_mb", "flops_g", "params", "kv_bytes", "file_mb"):
                total = np.broadcast_to(getattr(costs, name), (len(enumeration.kinds_of(OPEN).layers), 4))[place]
                bound = predicted.upper(name) if name in ("decode_ms", "prefill_ms") else getattr(predicted, name)
                assert total == pytest.approx(bound, rel=1e-9), (name, arch.shape())


@pytest.mark.parametrize("effect", [-0.05, 0.05])
def test_an_open_axis_is_chosen_if_it_lowers_the_loss(effect):
    """Its term is not measured yet, so one is assumed. The choice is the best of all members by their own score."""
    board = load_profile("raspberry-pi-zero-2w")
    scoring = MEASURED.having(convolution=effect, taps=effect / 2, ngrams_2=effect, ngrams_3=effect / 2)
    limits = {"decode_ms": 6.0, "memory_mb": 120.0}
    found = design(
        board, limits, context=64, prompt=16, space=OPEN, vocabs=[512], precisions=["int8"], kvs=[None], scoring=scoring
    )
    model = cost_model(board, InferenceShape("int8", 64, 16))
    best = max(
        existing_score(arch, scoring, "int8") for tables in TABLES for _, arch in members(OPEN, 512, tables)
        if any(cost.meets(limits) for cost in model.predict_each(arch.operators))
    )  # fmt: skip
    assert found.entropy == pytest.approx(best) == pytest.approx(existing_score(found.architecture, scoring, "int8"))
    assert found.architecture.caches_inputs == (effect < 0)


# Training


def test_tables_begin_at_zero_and_have_no_decay_and_a_rate_of_their_own():
    model = build_model(architecture(*AXES))
    model.initialize_matrices()
    recipe = Recipe(learning_rate=0.01, weight_decay=0.1, table_rate=3.0)
    groups = optimizer_for(model, recipe, by_width=True).param_groups
    group_of = {id(weight): group for group in groups for weight in group["params"]}
    for table in model.ngrams:
        assert not table.weight.any()
        group = group_of[id(table.weight)]
        assert group["lr"] == pytest.approx(3 * group_of[id(model.embed_tokens.weight)]["lr"])
        assert group["weight_decay"] == 0
    for name, weight in model.named_parameters():
        assert weight.any() != name.startswith("ngrams")
        if name.endswith("_taps.weight"):  # as if there were none
            assert not weight[:-1].any() and (weight[-1] == 1).all()


def test_a_decoder_with_all_axes_is_trained_and_exported(tmp_path):
    text = write_stories(tmp_path / "stories.txt")
    arch = architecture(*AXES).model_copy(update={"vocab": 300})
    recipe = Recipe(steps=24, batch=4, evaluations=2)
    record = train(arch, [text], tmp_path / "whole", recipe=recipe)
    assert record["losses"][-1]["eval_loss"] < np.log(300) - 0.5
    source = load_source(tmp_path / "whole")
    assert source.arch == arch and all(table.weight.any() for table in source.model.ngrams)
    bundle = export(source, tmp_path / "bundle", ExportRequest(precision="int8")).bundle
    assert selftest(bundle, open_backend(bundle)) is None
