"""Quantized matrices alone, the graphs that compute with them, and SmoothQuant, which rescales channels before."""

import json

import numpy as np
import onnx
import pytest
import torch
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.dialects.external_data import DATA_FILE, PAGE
from merino_edge.export.export import export
from merino_edge.export.parity import dequantized_model, rms_error
from merino_edge.export.plan import resolve_plan
from merino_edge.export.quantize import outliers
from merino_edge.export.quantize.matrix import dequantize, for_tiles, quantize_groups
from merino_edge.export.quantize.smoothquant import NOTE, move, sites_of, smoothed
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families import operators
from merino_edge.families.designed import Architecture
from merino_edge.families.graph_ops import Norm
from merino_edge.families.opt import OptArchitecture
from merino_edge.families.weights import model_weights
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from tests.sample_models import DAILY, SMALL, parts, quantized, small

FORMATS = [("fused", "int8"), ("fused", "int4"), ("portable", "int8"), ("portable", "int4")]
PROMPT, STEPS = 9, 32
MATRICES = arrays.arrays(np.float32, (3, 64), elements=st.floats(-4, 4, width=32, allow_subnormal=False))


def plain(matrix, bits, block):
    """Each block by its largest value alone: what the search for a scale must never be worse than."""
    values = matrix.reshape(len(matrix), -1, block)
    half = 2 ** (bits - 1)
    largest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)
    scale = np.where(largest == 0, 1, largest / -half)
    return (np.clip(np.round(values / scale), -half, half - 1) * scale).reshape(matrix.shape)


@given(MATRICES, st.sampled_from([4, 8]), st.sampled_from([32, 64]))
@examples(100)
def test_values_come_back_and_no_worse_than_by_the_largest_value(matrix, bits, block):
    quantized = quantize_groups(matrix, bits, block)
    assert quantized.codes.shape == (3, 64 // block, block * bits // 8) and quantized.codes.dtype == np.uint8
    assert quantized.scales.shape == (3, 64 // block)
    back = dequantize(quantized)
    largest = np.repeat(np.abs(matrix).reshape(3, -1, block).max(-1), block, axis=1)
    # In 4 bits the largest value may lose 0.3 of itself and the refit's part, where that lets the others come nearer.
    bound = {4: 0.4, 8: 4.4 / 2**8}[bits]
    assert (np.abs(back - matrix) <= largest.reshape(matrix.shape) * bound + 1e-6).all()
    spacing = 1e-6 * np.abs(matrix).max()  # of float32 at the largest value: the scale is rounded to it
    norms = [np.linalg.norm((each - matrix).astype(np.float64)) for each in (back, plain(matrix, bits, block))]
    assert norms[0] <= norms[1] * (1 + 1e-5) + spacing * matrix.size**0.5


@given(arrays.arrays(np.int8, (2, 64), elements=st.integers(-8, 7)), st.floats(1e-3, 10))
def test_what_codes_can_say_is_said_exactly(codes, scale):
    codes[:, ::32] = -8  # the largest value of each block fixes its scale
    matrix = (codes * np.float32(scale)).astype(np.float32)
    assert dequantize(quantize_groups(matrix, 4, 32)) == pytest.approx(matrix, rel=1e-5)


@given(MATRICES)
@examples(50)
def test_codes_of_both_signs_have_no_minus_128_and_are_hardly_worse(matrix):
    quantized = quantize_groups(matrix, 8, 64, both_signs=True)
    assert quantized.codes.min() >= 1  # 128 stands for zero
    largest = np.abs(matrix).max(1, keepdims=True)
    assert (np.abs(dequantize(quantized) - matrix) <= largest * 4.4 / 2**8 + 1e-6).all()


def test_zeros_stay_zeros():
    assert not dequantize(quantize_groups(np.zeros((2, 64), np.float32), 4, 32)).any()
    tiniest = np.full((2, 64), 1e-45, np.float32)  # its scale is 0
    assert np.abs(dequantize(quantize_groups(tiniest, 4, 32))).max() <= 1e-44


MODELS = {
    "wider, shared": Architecture(
        blocks=(
            {"width": 64, "ffn_ratio": 1.5, "depth": 1},
            {"width": 128, "ffn_ratio": 2, "depth": 2, "shared": True, "kv_heads": 2},
        ),
        vocab=311, head_size=32, context=PROMPT + STEPS,
    ),
    "one block, gated": Architecture(
        blocks=({"width": 256, "ffn_ratio": 1, "depth": 2, "kv_heads": 1, "gated": True},), vocab=311, head_size=64,
        context=PROMPT + STEPS,
    ),
    "opt": OptArchitecture(
        width=128, layers=2, heads=4, ffn_width=256, embed_width=64, vocab=311, context=PROMPT + STEPS, pre_norm=False
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=[
    "wider, shared", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("one block, gated", "opt")),
])  # fmt: skip
def source(request, saved):
    return saved(MODELS[request.param], 3)._replace(weights="random")  # rounded without GPTQ


@pytest.mark.parametrize(("dialect", "precision"), FORMATS)
def test_the_graph_computes_what_the_codes_stand_for(source, dialect, precision, tmp_path):
    """Each step against torch with the dequantized weights; activations are int8 in the graph, so not exactly."""
    done = export(source, tmp_path / "bundle", ExportRequest(dialect=dialect, precision=precision, kv="fp32"))
    codes = {row.name: requantized(source, row, dialect) for row in done.matrices}
    model = dequantized_model(source.model, codes)
    ids = np.random.default_rng(5).integers(0, 311, PROMPT + STEPS)
    with torch.no_grad():
        expected = model(torch.tensor([ids.tolist()])).logits[0].numpy()
    backend = open_backend(load_bundle(str(tmp_path / "bundle")))
    rows = [backend.prefill(ids[:PROMPT].tolist()).copy()]
    rows += [backend.step(int(token)).copy() for token in ids[PROMPT:]]
    backend.close()
    errors = [rms_error(one, row) for one, row in zip(rows, expected[PROMPT - 1 :], strict=True)]
    assert len(errors) == STEPS + 1
    assert max(errors) < 0.05
    assert max(errors) > 1e-4  # the comparison is with other arithmetic, not with itself


def requantized(source, row, dialect):
    """Portable graphs have rows of 8 bits whole, without -128; tiles have scales in float16."""
    matrix = np.concatenate([source.model.state_dict()[name].numpy() for name in row.name.split("+")])
    rows = dialect == "portable" and row.bits == 8
    quantized = quantize_groups(matrix, row.bits, row.group_size, both_signs=rows)
    return quantized if rows else for_tiles(row.name, quantized)


@pytest.mark.parametrize(("dialect", "precision"), FORMATS)
def test_a_tied_table_is_stored_once_and_bytes_are_those_of_the_file(source, dialect, precision, tmp_path):
    done = export(source, tmp_path / "bundle", ExportRequest(dialect=dialect, precision=precision))
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    size = (tmp_path / "bundle" / DATA_FILE).stat().st_size
    constants = 2 * len(done.matrices) + 20
    rotary = 2 * (PROMPT + STEPS) * 64 * 4
    small = 4 * sum(op.vector for op in source.arch.operators)  # vectors under a kilobyte stay in the graph
    assert description["weight_bytes"] - small <= size <= description["weight_bytes"] + rotary + constants * PAGE
    assert description["precision"] == precision
    if dialect == "fused":
        predicted = operators.weight_bytes(source.arch.operators, precision)
        assert description["weight_bytes"] == pytest.approx(predicted, rel=0.06)  # rows are padded to whole tiles
        assert description["backends"][0]["min_version"] == "1.18"


PUBLISHED = {name: small(name) for name in SMALL if small(name).decoder()}
PUBLISHED["llama untied"] = small("llama", tied=False)
ROWS = np.random.default_rng(0).integers(0, 96, (4, 16))


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ROWS)).logits.numpy()


@pytest.mark.parametrize("name", [
    name if name in DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in PUBLISHED
])  # fmt: skip
def test_the_model_computes_the_same_whatever_the_factors(name, decoder):
    arch, random = PUBLISHED[name], np.random.default_rng(1)
    model, kept = decoder(arch, 3), decoder(arch, 3)
    weights, sites = model_weights(model, arch.layout), list(sites_of(arch.decoder()))
    for site in sites:
        columns = weights[site.after.weights[0]].shape[1]
        move(weights, site, np.exp(random.uniform(-3, 3, columns)).astype(np.float32))
    expected = logits(kept)
    assert np.abs(logits(model) - expected).max() < 2e-5 * np.abs(expected).max()
    state = kept.state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, state[name])}
    norms = {part for site in sites if isinstance(site.before, Norm) for part in (site.before.weight, site.before.bias)}
    assert changed >= {part for site in sites for part in site.after.weights} | norms - {None}
    assert ("lm_head.weight" in changed) == (arch.decoder().head == "lm_head.weight")


def with_outliers(model, arch):
    """A few channels behind each norm fifty times as large as the others, as published models have them, and read as
    weakly."""
    weights = model_weights(model, arch.layout)
    for index, site in enumerate(sites_of(arch.decoder())):
        factors = np.ones(weights[site.after.weights[0]].shape[1], np.float32)
        factors[index % 7 :: 23] = 1 / 50
        move(weights, site, factors)
    return model


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_an_export_in_int8_loses_less_of_a_model_with_outliers(family, decoder, tmp_path, monkeypatch):
    arch = small(family, context=48)
    source = Source(family, arch, with_outliers(decoder(arch, 3), arch), "trained", "drawn", (), None)
    before = {name: weight.clone() for name, weight in source.model.state_dict().items()}
    done = export(source, tmp_path / "smoothed", ExportRequest(precision="int8"))
    assert done.note == onnx.load(str(done.folder / "model.onnx"), load_external_data=False).doc_string == NOTE
    assert all(torch.equal(weight, before[name]) for name, weight in source.model.state_dict().items())
    monkeypatch.setattr("merino_edge.export.export.smoothed", lambda given, *_, **__: given)
    plain = export(source, tmp_path / "plain", ExportRequest(precision="int8"))
    assert plain.note == "" and done.error < 0.6 * plain.error


def test_int4_stores_groups_with_outliers_twice_and_loses_less(decoder, tmp_path, monkeypatch):
    """In codes and scales that stay as they are: what torch computes with them is the same."""
    arch, made = small("llama", context=48), {}
    for share in (0, 0.3, 1.0):  # by default less than the smallest group of so small a model
        monkeypatch.setattr(outliers, "MOST_BYTES", share)
        source = Source("llama", arch, with_outliers(decoder(arch, 3), arch), "trained", "drawn", (), None)
        made[share] = export(source, tmp_path / str(share), ExportRequest(precision="int4", kv="fp32"))
    plain, few, all_of_them = made.values()
    assert all_of_them.error < 0.75 * plain.error  # groups of 32 already keep most channels from the outliers
    assert plain.note == "" and few.note == all_of_them.note == outliers.TWICE
    assert plain.bundle.weight_bytes < few.bundle.weight_bytes < 1.3 * plain.bundle.weight_bytes
    assert all(done.unrounded < 1e-4 for done in made.values())
    assert plain.matrices == few.matrices == all_of_them.matrices


def test_blocks_that_the_graph_takes_over_stay_as_they_are(tmp_path):
    """A file in Q8_0 has no site; one in Q4_1 is scaled, and cut into blocks of the quantizer's choice; its table in
    Q8_0 is taken over."""
    from tests.edge.test_gguf import WIDE, write_in_blocks

    for kind, changed in (("Q8_0", False), ("Q4_1", True)):
        path = tmp_path / f"{kind}.gguf"
        write_in_blocks(path, "llama", kind, "Q8_0", num_hidden_layers=1, **WIDE)
        source = load_source(str(path))
        result = smoothed(source, lambda: ROWS, {})
        assert (result is not source) == changed
        matrices = quantized(result, GraphFormat("int8", "fused", 64))
        tables = {source.arch.decoder().embedding, source.arch.decoder().head}
        exact = {name for matrix in matrices.values() for name in matrix.exact}
        assert exact == {name for name in parts(matrices) if name in tables or not changed}


def test_random_weights_and_designs_are_left_alone(tiny_arch, decoder, tmp_path):
    for arch, weights, planned in (
        (small("llama"), "random", False), (tiny_arch, "trained", False), (small("llama"), "trained", True)
    ):  # fmt: skip
        source = Source("any", arch, decoder(arch, 1), weights, "drawn", (), None)
        plan = resolve_plan(ExportRequest(precision="int8"), source, tmp_path / "bundle")
        assert plan.smoothquant == planned
