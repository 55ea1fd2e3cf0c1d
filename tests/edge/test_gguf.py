"""GGUF files of each architecture: read as Hugging Face has the model, run by llama.cpp, exported with their blocks."""

from collections import Counter, defaultdict

import gguf
import numpy as np
import onnx
import pytest
import sample_gguf as sample
import torch
from few_examples import examples
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from typer.testing import CliRunner

from merino_edge.bundles.description import GraphFormat
from merino_edge.cli.app import app
from merino_edge.export.dialects import build_graph
from merino_edge.export.export import export
from merino_edge.export.quantize.matrix import dequantize as matrix_weights
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import graph_weights, load_source
from merino_edge.families.gguf.blocks import LAYOUTS
from merino_edge.families.gguf.config import config_of
from merino_edge.families.gguf.file import open_gguf
from merino_edge.families.gguf.tensors import layouts, tensors
from merino_edge.families.registry import FAMILIES
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from tests.sample_models import parts, quantized

EXPORTED = [name for name, config in sample.CONFIGS.items() if config["model_type"] in FAMILIES]
EXPORTED_BY_DAY = [("llama", "portable"), *((name, "fused") for name in ("llama", "gemma3n", "phi3", "lfm2"))]
FLOATS = {Kind.Q4_1: (0, 2), Kind.Q5_1: (0, 2), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
STEPS = 24
STRENGTHS = {"granite": 40, "gpt2": 12, "hunyuan-dense": 12, "stablelm": 20, "gemma": 10, "smollm3": 10,
             "gemma3n": 0.5, "llama4": 10, "bloom": 10, "lfm2": 10}  # fmt: skip
WIDE = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 512}  # K types have blocks of 256


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(path, the model in transformers) of an architecture, made once."""
    folder, result = tmp_path_factory.mktemp("gguf"), {}

    def make(name):
        if name not in result:
            model = sample.random_model(name, strength=STRENGTHS.get(name, 5))
            result[name] = sample.write_gguf(folder / f"{name}.gguf", model), model
        return result[name]

    return make


@pytest.mark.parametrize("name", sample.CONFIGS)
def test_metadata_and_tensors_are_those_of_hugging_face(made, name, monkeypatch):
    monkeypatch.setattr("merino_edge.families.gguf.tensors.ROW_BLOCK", 48)
    path, model = made(name)
    file = open_gguf(path)
    words = config_of(file)
    config = AutoConfig.for_model(**words).to_dict()
    expected = model.config.to_dict()
    harmless = {"layer_types", "initializer_range", "head_dim", "pad_token_id", "dtype", "architectures"}
    differing = {
        key: (expected[key], config[key]) for key in set(expected) & set(config) - harmless
        if expected[key] != config[key] and not close(expected[key], config[key])
    }  # fmt: skip
    geometry_of = FAMILIES[model.config.model_type].geometry.of_config
    geometry = geometry_of(AutoConfig.for_model(**words))
    stored, scaled = (getattr(known, "rope_scaling", None) for known in (geometry, geometry_of(model.config)))
    if scaled:  # the file has its divisors, not its rule
        differing.pop("rope_parameters", None)
        np.testing.assert_allclose(stored.divisors, scaled.divisors, rtol=1e-5)
        assert close(stored.magnitude, scaled.magnitude)
    assert differing == {}
    state = model.state_dict()
    names = [key for key in state if key != "lm_head.weight" or not model.config.tie_word_embeddings]
    parts = defaultdict(list)
    for key, _, rows in tensors(file, layouts(file, geometry, names)):
        parts[key].append(rows)
    result = {key: np.concatenate(rows) for key, rows in parts.items()}
    assert set(result) == set(names)
    for key in names:
        atol = 2e-7 if name.startswith("gemma") else 0
        np.testing.assert_allclose(result[key], state[key].numpy(), rtol=0, atol=atol)


def close(one, other):
    """A number that went through float32."""
    return isinstance(one, float) and isinstance(other, float) and abs(one - other) < 1e-6 * abs(one)


@pytest.mark.slow
@pytest.mark.parametrize("name", sample.CONFIGS)
def test_llama_cpp_reads_the_same_model_from_the_file(made, name, monkeypatch):
    """So what `write` does and the reader undoes is llama.cpp's convention, not an error made twice."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (peers)")
    from merino_edge.benchmarking.engine_process import open_llama_cpp

    path, model = made(name)
    prompt = [(37 + 7 * index) % 300 + 3 for index in range(40)]
    of_all = torch.std
    if name == "gemma3n":  # llama.cpp takes the standard deviation of a sample
        monkeypatch.setattr(torch, "std", lambda x, **keys: of_all(x, **{**keys, "unbiased": True}))
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None)
    expected = ids[0, len(prompt) :].tolist()
    request = {"engine": "llama.cpp", "path": str(path), "prompt": len(prompt), "steps": STEPS, "threads": 1}
    _, run, _ = open_llama_cpp(request)
    assert run(prompt, STEPS - 1)[1] == expected
    assert len(set(expected)) > 3, "a model that repeats itself would hide a difference"


@pytest.mark.parametrize("keys, kind, factor", [
    ({"type": "linear", "factor": 4.0}, "linear", 4.0),
    ({"type": "yarn", "factor": 4.0, "original_context_length": 32}, "yarn", 4.0),
    ({"type": "none", "factor": 4.0}, "default", None),
])  # fmt: skip
def test_a_scaling_of_the_rotary_frequencies_in_the_metadata_is_read(tmp_path, keys, kind, factor):
    path = sample.write_gguf(tmp_path / "model.gguf", sample.random_model("llama"), **{
        f"llama.rope.scaling.{key}": value for key, value in keys.items()
    })  # fmt: skip
    rope = config_of(open_gguf(path))["rope_parameters"]
    assert (rope["rope_type"], rope.get("factor")) == (kind, factor)


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
@given(seed=st.integers(0, 2**32 - 1))
@examples(20)
def test_levels_scales_and_minimums_are_what_the_blocks_stand_for(kind, seed):
    raw = random_blocks(kind, 2, 512, seed)
    expected = dequantize(raw, kind)
    weights, unpack = LAYOUTS[kind]
    levels, scales, minimums, bits = unpack(raw.reshape(2, 512 // weights, -1))
    levels, scales = levels.reshape(2, -1, levels.shape[-1]), scales.reshape(2, -1, 1)
    assert -(2 ** (bits - 1)) <= levels.min() and levels.max() < 2 ** (bits - 1)
    result = levels.astype(np.float32) * scales + (0 if minimums is None else minimums.reshape(2, -1, 1))
    # A minimum is moved by half the levels; in float32 that rounds.
    np.testing.assert_allclose(result.reshape(2, -1), expected, rtol=1e-6, atol=np.abs(expected).max() * 1e-6)


def random_blocks(kind, rows, columns, seed):
    """Random codes; the float16 values in each block are small."""
    random = np.random.default_rng(seed)
    block, size = GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    for at in FLOATS.get(kind, (0,)):
        small = (0.01 * random.standard_normal(raw.shape[:2])).astype(np.float16)
        raw[..., at : at + 2] = small[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


TAKEN = [  # type, precision, bits and block of the graph, whether the codes are the file's
    ("Q4_0", "int4", 4, 32, True), ("Q4_1", "int4", 4, 32, True), ("Q4_K", "int4", 4, 32, True),
    ("Q4_0", "int8", 5, 32, True), ("Q5_0", "int8", 5, 32, True), ("Q8_0", "int8", 8, 32, True),
    ("Q6_K", "int8", 6, 16, True), ("Q4_1", "int8", 8, 32, False), ("Q5_0", "int4", 5, 32, True),
    ("Q6_K", "int4", 6, 16, True), ("Q8_0", "int4", 8, 32, True), ("Q5_1", "int4", 8, 32, False),
    ("F16", "int4", 4, None, False),
]  # fmt: skip
BY_DAY = {("Q4_0", "int4"), ("Q4_1", "int4"), ("Q6_K", "int4"), ("Q5_1", "int4"), ("Q8_0", "int8")}


@pytest.mark.parametrize("kind, precision, bits, block, exact", [
    each if each[:2] in BY_DAY else pytest.param(*each, marks=pytest.mark.nightly) for each in TAKEN
])  # fmt: skip
def test_blocks_go_into_the_graph_as_they_are_where_it_has_such_blocks(
    tmp_path, kind, precision, bits, block, exact
):  # fmt: skip
    path = tmp_path / "model.gguf"
    write_in_blocks(path, "llama", kind, "Q8_0", num_hidden_layers=1, **WIDE)
    source = load_source(str(path))
    form = GraphFormat(precision, "fused", 64)
    matrices = quantized(source, form)
    names = parts(matrices)
    table = "model.embed_tokens.weight"
    assert taken_over(matrices) == (set(names) if exact else {table}), "the embedding is Q8_0 in each format"
    state = source.model.state_dict()
    for joined, result in matrices.items():
        if joined == table:
            assert (result.bits, result.group_size) == (8, 32)
            continue
        assert result.bits == bits and result.group_size == (block or result.group_size)
        weights = torch.cat([state[name] for name in joined.split("+")]).numpy()
        error = np.abs(matrix_weights(result) - weights).max() / np.abs(weights).max()
        assert error < 1e-3 if exact else 1e-4 < error < 0.5  # minimums are rounded to float16
    # Its logits are compared with torch's. Random blocks give keys beyond what an int8 cache is fitted to.
    done = export(source, tmp_path / "bundle", ExportRequest(precision=precision, context=64, kv="fp32"))
    expected = {"Q8_0": (1, 0), kind: (len(names) - 1, 0) if exact else (0, len(names) - 1)}
    if kind == "Q8_0":
        expected = {"Q8_0": (len(names), 0) if exact else (1, len(names) - 1)}
    assert {name: (exact, again) for name, exact, again in done.stored} == expected
    plain_bytes = build_graph(source.arch, graph_weights(source), matrices, form).weight_bytes
    most = plain_bytes * (1 if precision == "int8" else 1.06)  # in int4 groups with outliers are stored twice
    assert plain_bytes <= done.bundle.weight_bytes <= most


@pytest.mark.parametrize("kind, precision, matmuls", [
    ("Q4_1", "int4", {"MatMul4": 4, "MatMul8": 1}), ("Q5_0", "int4", {"MatMul5": 4, "MatMul8": 1}),
    ("Q8_0", "int8", {"MatMul8": 5}), ("Q4_1", "int8", {"MatMul8": 5}), ("Q5_0", "int8", {"MatMul5": 4, "MatMul8": 1}),
    ("Q6_K", "int4", {"MatMul6": 4, "MatMul8": 1}), ("Q6_K", "int8", {"MatMul6": 4, "MatMul8": 1}),
])  # fmt: skip
def test_tiles_hold_the_blocks_of_a_file(kind, precision, matmuls, tmp_path):
    """The export compares the logits with torch's."""
    path = tmp_path / "model.gguf"
    write_in_blocks(path, "llama", kind, "Q8_0", num_hidden_layers=1, **WIDE)
    request = ExportRequest(precision=precision, context=64)
    done = export(load_source(str(path)), tmp_path / "bundle", request)
    graph = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert {name: count for name, count in kinds.items() if name.startswith("MatMul")} == matmuls
    assert kinds["Rows8"] == 1
    requantized = sum(requantized for _, _, requantized in done.stored)
    assert requantized == (7 if (kind, precision) == ("Q4_1", "int8") else 0)


def taken_over(matrices):
    return {name for matrix in matrices.values() for name in matrix.exact}


def write_in_blocks(path, name, kind, table, **changes):
    """A model whose matrices are of a type that the package gguf cannot quantize: random blocks."""
    model = sample.random_model(name, **changes)
    if Kind[kind] not in LAYOUTS or not kind.endswith("_K"):
        return sample.write_gguf(path, model, kind, table)
    real, seeds = gguf.quants.quantize, iter(range(1000))

    def quantize(values, form):
        if form != Kind[kind]:
            return real(values, form)
        blocks = random_blocks(form, *values.shape, next(seeds))
        return around_zero(blocks) if form == Kind.Q4_K else blocks

    gguf.quants.quantize = quantize
    try:
        return sample.write_gguf(path, model, kind, table)
    finally:
        gguf.quants.quantize = real


def around_zero(raw):
    """Blocks of Q4_K with each minimum 7.5 of the block's scales below zero, as those of weights are: sums of blocks
    that outweigh the matmuls would be all that the rounding of activations is judged by."""
    raw = raw.reshape(len(raw), -1, GGML_QUANT_SIZES[Kind.Q4_K][1])
    scales = np.abs(raw[..., 0:2].copy().view(np.float16)).astype(np.float16)
    raw[..., 0:2], raw[..., 2:4] = scales.view(np.uint8), (7.5 * scales).astype(np.float16).view(np.uint8)
    raw[..., 8:12] = raw[..., 4:8]
    raw[..., 12:16] = raw[..., 12:16] & 15 | raw[..., 12:16] << 4
    return raw.reshape(len(raw), -1)


def test_matrices_of_several_types_that_are_joined_share_one_size_of_block(tmp_path):
    """As in Q4_K_M: values in Q6_K, queries and keys in Q4_K."""
    path = tmp_path / "model.gguf"
    write_in_blocks(path, "llama", "Q6_K", "Q8_0", num_hidden_layers=1, **WIDE)
    source = load_source(str(path))

    class Mixed:
        kind, bits = source.blocks.kind, source.blocks.bits

        @staticmethod
        def blocks(name):
            """Queries as they are, keys without blocks."""
            return None if "k_proj" in name else source.blocks.blocks(name)

    matrices = quantized(source._replace(blocks=Mixed()), GraphFormat("int8", "fused", 64))
    joined, result = next((name, matrix) for name, matrix in matrices.items() if "k_proj" in name)
    assert result.group_size == 32 and not result.exact, "groups of 16 are multiplied in 6 bits alone"
    state = source.model.state_dict()
    weights = torch.cat([state[name] for name in joined.split("+")]).numpy()
    np.testing.assert_allclose(matrix_weights(result), weights, atol=0.01 * np.abs(weights).max())


def write_mixed(path, monkeypatch):
    """As Q4_K_M has them, of types that the package gguf can quantize: values and every second layer's FFN in more than
    4 bits."""
    result = sample.tensors_of

    def mixed(*arguments):
        more = {"blk.0.attn_v.weight": "Q8_0", "blk.1.ffn_up.weight": "Q5_0", "blk.1.ffn_down.weight": "Q5_0"}
        for name, values, kind in result(*arguments):
            yield name, values, more.get(name, kind)

    monkeypatch.setattr(sample, "tensors_of", mixed)
    return sample.write_gguf(path, sample.random_model("llama", num_hidden_layers=2, **WIDE), "Q4_1", "Q8_0")


def test_int4_keeps_in_more_bits_what_a_mixed_file_has_in_more_than_4(tmp_path, monkeypatch):
    source = load_source(str(write_mixed(tmp_path / "model.gguf", monkeypatch)))
    done = export(source, tmp_path / "bundle", ExportRequest(precision="int4", context=64))
    assert done.unrounded < 1e-3, "the graph computes what torch does with these weights"
    bits = {part.rpartition(".layers.")[2]: each.bits for each in done.matrices for part in each.name.split("+")}
    assert {name: number for name, number in bits.items() if number != 4} == {
        "0.self_attn.v_proj.weight": 8, "1.mlp.up_proj.weight": 5, "1.mlp.down_proj.weight": 5,
        "model.embed_tokens.weight": 8,
    }
    assert set(done.stored) == {("Q8_0", 2, 0), ("Q4_1", 11, 0), ("Q5_0", 2, 0)}
    assert max(each.worst for each in done.matrices) < 0.01


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_command_says_which_blocks_were_taken_over(tmp_path, precision):
    write_in_blocks(tmp_path / "model.gguf", "llama", "Q4_0", "Q8_0", num_hidden_layers=1, **WIDE)
    words = ["export", tmp_path / "model.gguf", "--board", "raspberry-pi-4", "--precision", precision]
    done = CliRunner().invoke(app, [*map(str, words), "--context", "64", "-o", str(tmp_path / "bundle")])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Q4_0: 7 matrices taken over exactly" in done.stderr and "Q8_0: 1 matrices taken over exactly" in done.stderr
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert bundle.precision == precision and "raspberry-pi-4" in bundle.boards


@pytest.mark.parametrize(("name", "dialect"), [
    pytest.param(name, dialect, marks=() if (name, dialect) in EXPORTED_BY_DAY else pytest.mark.nightly)
    for name in EXPORTED for dialect in ("fused", "portable")
])  # fmt: skip
def test_an_export_computes_what_transformers_computes(made, tmp_path, name, dialect):
    path, model = made(name)
    done = export(load_source(str(path)), tmp_path / "bundle", ExportRequest(dialect=dialect))
    bundle = load_bundle(str(done.folder))
    assert bundle.weights == "trained" and bundle.weights_source == f"file {name}.gguf" and bundle.stop_ids == (2,)
    backend = open_backend(bundle)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 9, 200, 31, 7]])).logits[0, -1].numpy()
    result = backend.prefill([5, 9, 200, 31, 7])
    backend.close()
    assert np.abs(result - expected).max() < 1e-3 * np.abs(expected).max()
    assert done.stored == []
