"""A cache of integers: the graph, in the board's own runtime, against torch with a cache that holds what the codes
stand for; its scales; and where it is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

import merino_edge.export.quantize.calibration as calibration
from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.cli.app import app
from merino_edge.design.design_file import load_design
from merino_edge.design.designer import design
from merino_edge.export.export import export
from merino_edge.export.parity import RoundedCache
from merino_edge.export.quantize.calibration import calibrated_cache, filled_layers, own_rows, rise_of
from merino_edge.export.quantize.kv_cache import fitted_scales, largest_code, rounded, scales_of
from merino_edge.export.request import ExportRequest, cache_format
from merino_edge.export.source import Source, load_source
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import kv_bytes
from merino_edge.prediction.formats import cache_on, check_cache, default_cache
from merino_edge.profiles.reading import load_profile
from merino_runtime.api import selftest
from merino_runtime.backends import onnx_session, open_backend
from merino_runtime.bundle import load_bundle, quantized_cache
from merino_runtime.errors import MerinoError
from merino_runtime.generation.cache_file import load_cache, save_cache
from tests.sample_models import ARCH, small

PROMPT, STEPS, VOCAB = 9, 24, 311
CONTEXT = PROMPT + STEPS
FORMATS = ("int8", "int4")
TOLERANCE = 2e-5  # of the largest logit, as for a cache of floats
# A value in the middle between two codes may fall on either side, and then changes what follows a little.
TIES, AFTER_A_TIE = 0.002, {"int8": 0.02, "int4": 0.2}
MODELS = {
    "heads of several blocks": Architecture(
        blocks=[
            {"width": 64, "ffn_ratio": 1.0, "depth": 2, "shared": True}, {"width": 96, "ffn_ratio": 2.0, "depth": 1},
        ],
        vocab=VOCAB, head_size=32, context=CONTEXT,
    ),
    "grouped heads": small("llama", vocab=VOCAB, context=CONTEXT),
    "one group of normed heads": small("qwen3", vocab=VOCAB, context=CONTEXT, kv_heads=1),
    "channels in another order": small("gpt_neox", vocab=VOCAB, context=CONTEXT),
    "learned positions": small("gpt2", vocab=VOCAB, context=CONTEXT),
    "windows": small("gemma3_text", vocab=VOCAB, context=CONTEXT),
}  # fmt: skip


@pytest.fixture(scope="module", params=[
    name if name in ("heads of several blocks", "channels in another order", "windows") else
    pytest.param(name, marks=pytest.mark.nightly) for name in MODELS
])  # fmt: skip
def source(request, decoder):
    arch = MODELS[request.param]
    return Source(request.param, arch, decoder(arch, 7), "random", "drawn", (), None)


@pytest.fixture(scope="module", params=FORMATS)
def bundle(request, source, tmp_path_factory):
    return export(source, tmp_path_factory.mktemp("quantized") / "bundle", ExportRequest(kv=request.param)).bundle


@pytest.fixture(scope="module", params=FORMATS)
def talking(request, tiny_checkpoint, tmp_path_factory):
    """A bundle with a tokenizer."""
    out = tmp_path_factory.mktemp("text") / "bundle"
    source = load_source(str(tiny_checkpoint))._replace(weights="random")  # which are not judged by a text
    return export(source, out, ExportRequest(kv=request.param)).bundle


def whole(array):
    """Codes [1, heads, tokens, head_size] in the bytes of a cache."""
    if array.dtype == np.int8:
        return array.astype(int)
    low, high = (array & 15).astype(int) - 8, (array >> 4).astype(int) - 8
    return np.stack((low, high), axis=-1).reshape(*array.shape[:3], -1)


def codes_in(cache, scales, order):
    """The same in torch's cache, keys and values of each layer, in the graph's order."""
    for held, (keys, values) in zip(cache.layers, scales.layers, strict=True):
        result = np.rint(held.keys.numpy() / keys[:, None])
        yield result if order is None else result[..., order]
        yield np.rint(held.values.numpy() / values[:, None])


@torch.no_grad()
def test_the_graph_is_torch_with_a_cache_of_the_same_codes(source, bundle):
    """At the prefill and at every step to the last slot."""
    form = bundle.kv_layers[0].format
    scales, _ = calibrated_cache(source, form, own_rows(source, CONTEXT))
    ids = np.random.default_rng(5).integers(0, VOCAB, CONTEXT).tolist()
    cache, backend, errors = RoundedCache(scales), open_backend(bundle), []
    now = ids[:PROMPT]
    for length in range(PROMPT, CONTEXT + 1):
        expected = source.model(input_ids=torch.tensor([now]), cache=cache, use_cache=True).logits[0, -1].numpy()
        logits = backend.step(now[0]) if len(now) == 1 else backend.prefill(now)
        errors.append(np.abs(logits - expected).max() / np.abs(expected).max())
        now = ids[length : length + 1]
    results = [whole(array) for array in backend.filled()[1].values()]
    backend.close()
    apart = [np.abs(own - torchs) for own, torchs in zip(
        results, codes_in(cache, scales, source.arch.key_order()), strict=True)]  # fmt: skip
    assert max(each.max() for each in apart) <= 1
    assert sum(each.sum() for each in apart) <= TIES * sum(each.size for each in results)
    assert max(errors) <= AFTER_A_TIE[form] and np.quantile(errors, 0.2) <= TOLERANCE, errors
    assert all(np.ptp(each) > 0 and len(np.unique(each)) > 4 for each in results)  # codes that mean something


def test_a_bundle_says_what_its_cache_is_and_the_runtime_makes_it(source, bundle):
    form, operators = bundle.kv_layers[0].format, source.arch.operators
    assert {layer.format for layer in bundle.kv_layers} == {form}
    assert bundle.kv_bytes == kv_bytes(operators, CONTEXT, kv=form) == kv_bytes(operators, CONTEXT) * (
        {"int8": 1, "int4": 0.5}[form] / 4
    )
    need = bundle.backends[0]
    assert len(bundle.backends) == 1 and (need.name, need.min_version) == ("onnxruntime", "1.27")
    assert "jetson-orin-nano" not in bundle.boards  # its runtime is older
    assert not [file.path for file in bundle.files if file.path.endswith("config.json")]
    backend = open_backend(bundle)
    assert sum(array.nbytes for array in backend.cache.values()) == bundle.kv_bytes
    assert selftest(bundle, backend) is None
    backend.close()


def test_forks_rewinds_and_a_prefill_in_parts_do_what_they_do_with_floats(bundle):
    ids = np.random.default_rng(6).integers(0, VOCAB, 16).tolist()
    whole_run, parts = open_backend(bundle), open_backend(bundle)
    expected = whole_run.prefill(ids).copy()
    parts.prefill(ids[:5])
    parts.prefill([3, 4, 5])
    parts.truncate(5)
    twin = parts.fork()
    parts.step(7)
    logits = twin.prefill(ids[5:]).copy()
    assert np.abs(logits - expected).max() <= AFTER_A_TIE[bundle.kv_layers[0].format] * np.abs(expected).max()
    held, other = whole_run.filled()[1], twin.filled()[1]
    assert sum((held[name] != other[name]).sum() for name in held) <= TIES * sum(one.size for one in held.values())
    for backend in (whole_run, parts, twin):
        backend.close()


def test_a_kept_cache_comes_back_from_its_file(talking, tmp_path):
    first, again = open_backend(talking), open_backend(talking)
    first.prefill([1, 2, 3, 4])
    save_cache(talking, first, str(tmp_path / "kept"))
    load_cache(talking, again, str(tmp_path / "kept"))
    assert again.ids == [1, 2, 3, 4] and (again.step(5) == first.step(5)).all()
    first.close()
    again.close()


def test_a_cache_that_costs_too_much_is_not_offered(decoder, monkeypatch):
    """Of trained weights alone: a text's perplexity under the rounded cache is compared with that under floats."""
    arch = MODELS["grouped heads"]
    source = Source("dear", arch, decoder(arch, 7), "random", "drawn", (), None)
    trained, ids = source._replace(weights="trained"), own_rows(source, CONTEXT)
    fine, coarse = (scales_of(filled_layers(source.model, ids), bits) for bits in (8, 2))
    assert abs(rise_of(source.model, ids, fine)) < abs(rise_of(source.model, ids, coarse))
    monkeypatch.setattr(calibration, "MOST_RISE", -1.0)
    with pytest.raises(MerinoError, match="--kv int4 raises the perplexity .* give --kv int8 or --kv fp32"):
        calibrated_cache(trained, "int4", ids)
    assert calibrated_cache(source, "int4", ids)[1] is None


@examples(40)
@given(
    values=arrays(np.float32, (2, 7, 4), elements=st.floats(-1e4, 1e4, width=32)), bits=st.sampled_from([8, 4])
)
def test_scales_hold_what_was_seen(values, bits):
    """No scale of the whole range is better, each stands for its own channel, and all are positive and finite."""
    scales = fitted_scales(values, bits)
    assert scales.shape == (2, 4) and scales.dtype == np.float32 and (scales > 0).all() and np.isfinite(scales).all()

    def error(steps):
        return np.square(rounded(values, steps, bits) - values).sum(axis=1)

    plain = np.maximum(np.abs(values).max(axis=1) / largest_code(bits), 1e-8)
    assert (error(scales) <= error(plain) * 1.001 + 1e-6).all()
    assert np.array_equal(fitted_scales(values[:, :, ::-1], bits), scales[:, ::-1])


def test_a_design_keeps_its_cache_to_the_bundle(tmp_path):
    board = load_profile("raspberry-pi-4")
    request = {"context": 64, "prompt": 16, "vocabs": [257], "precisions": ["fp32"], "kvs": ["int8"]}
    designed = design(board, {"params_m": 0.2}, **request)
    (tmp_path / "design.json").write_text(designed.to_json())
    assert load_design(tmp_path / "design.json").kv == "int8"
    made = export(load_source(str(tmp_path / "design.json")), tmp_path / "bundle").bundle
    assert made.kv_bytes == designed.predicted.kv_bytes and made.kv_layers[0].format == "int8"
    timed = write_random_bundle(designed.architecture, "fp32", tmp_path / "timed", "timed", designed)
    assert timed.kv_layers == made.kv_layers


def test_a_checkpoint_keeps_its_designs_cache(tiny_checkpoint, tiny_arch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "checkpoint")
    request = {"context": 64, "prompt": 16, "vocabs": [257], "precisions": ["fp32"], "kvs": ["int8"]}
    designed = design(load_profile("raspberry-pi-4"), {"params_m": 0.2}, **request)
    designed = designed.model_copy(update={"architecture": tiny_arch})
    Path("checkpoint/design.json").write_text(designed.to_json())
    Path("text.txt").write_text("The river runs past the old mill. " * 40)

    def exported(*words):
        return CliRunner().invoke(app, ["export", "checkpoint", "--text", "text.txt", "-o", "bundle", *words])

    assert "KV cache in int8" in exported().output and quantized_cache(load_bundle("bundle")) == "int8"
    assert "the design's cache, int8, needs" in str(exported("--board", "jetson-orin-nano").exception)
    assert "cache is not quantized" in str(exported("--kv", "fp32").exception)
    Path("checkpoint/design.json").write_text(designed.to_json().replace('"kv": "int8"', '"kv": "int2"'))
    assert "must be int8 or int4" in str(exported().exception)


ORIN = load_profile("jetson-orin-nano")


@pytest.mark.parametrize("options, message", [
    ({"kv": "int8", "dialect": "portable"}, "--kv int8 is not possible in dialect portable"),
    ({"kv": "int4", "precision": "fp16"}, "not possible with --precision fp16"),
    ({"kv": "int2"}, "not known: choose one of fp32, int8, int4"),
    ({"kv": "int8", "board": ORIN}, "1.27 or later, and a .* has 1.23.2: give --kv fp32"),
    ({"kv": None, "dialect": "portable", "design": SimpleNamespace(kv="int8")}, "cache, int8.*Give --kv fp32"),
], ids=str)  # fmt: skip
def test_what_takes_no_such_cache_is_refused(options, message):
    with pytest.raises(MerinoError, match=message):
        cache_format(**{"dialect": "fused", "precision": "fp32", **options})


@pytest.fixture
def in_groups(tiny_checkpoint, decoder, tmp_path):
    """The tiny checkpoint with other weights, in rows that groups of 32 divide."""
    arch = Architecture.model_validate({**ARCH.model_dump(), "vocab": 300, "context": 64})
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    decoder(arch, seed=1, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_by_default_it_is_int8_and_float_if_that_changes_answers(precision, in_groups, tmp_path, monkeypatch):
    def exported(*words):
        call = ["export", str(in_groups), "--precision", precision, *words, "-o", str(tmp_path / "bundle")]
        return CliRunner().invoke(app, call).output, load_bundle(str(tmp_path / "bundle"))

    monkeypatch.setattr("merino_edge.export.export.MOST_CACHE_KL", 0.01)  # random weights lose more than trained ones
    output, bundle = exported()
    assert quantized_cache(bundle) == "int8" and {"GroupAttention8"} < set(bundle.kernels)
    assert "by the KV cache in int8 alone: KL" in output and "export with --kv fp32" in output
    assert bundle.backends[0].min_version == "1.18" and "jetson-orin-nano" in bundle.boards
    backend = open_backend(bundle)
    assert selftest(bundle, backend) is None
    backend.close()
    assert quantized_cache(exported("--kv", "fp32")[1]) is None
    monkeypatch.setattr("merino_edge.export.export.MOST_CACHE_KL", -1.0)
    output, bundle = exported()
    assert quantized_cache(bundle) is None and "KV cache is float32. In int8, that alone changes the answers" in output
    assert quantized_cache(exported("--kv", "int8")[1]) == "int8"


@pytest.mark.parametrize(("family", "precision", "dialect", "expected"), [
    ("llama", "int4", "fused", "int8"), ("gemma3_text", "int8", "fused", "int8"), ("gpt2", "int8", "fused", "int8"),
    ("llama", "fp32", "fused", None), ("llama", "fp16", "fused", None), ("llama", "int8", "portable", None),
    ("bloom", "int4", "fused", None), ("gemma2", "int4", "fused", None), ("lfm2", "int4", "fused", None),
    ("gemma3n_text", "int4", "fused", None),
])  # fmt: skip
def test_the_default_is_float_where_no_kernel_computes_the_attention(family, precision, dialect, expected):
    assert default_cache(small(family), precision, dialect) == expected
    board = load_profile("raspberry-pi-4" if dialect == "fused" else "jetson-nano")
    assert cache_on(board, small(family), precision) == expected


def test_a_wish_goes_before_the_designs_cache():
    planned = SimpleNamespace(kv="int8")
    assert cache_format("fp32", "fused", "fp32", design=planned) is None
    assert cache_format(None, "fused", "fp32", design=planned) == "int8"


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_a_design_for_a_backend_without_such_a_cache_is_refused(backend):
    with pytest.raises(MerinoError, match="onnxruntime 1.27 or later, and a .* Leave --kv out"):
        check_cache(ORIN.with_backend(backend), "int8", "fp32")


def test_an_older_runtime_is_refused_with_what_helps(bundle, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
    with pytest.raises(MerinoError, match="needs 1.27 or later.*export with --kv fp32"):
        onnx_session.import_onnxruntime(bundle)


def test_it_is_not_exported_again(bundle):
    with pytest.raises(MerinoError, match="take a bundle in fp32 with --kv fp32"):
        load_source(bundle.folder)


@pytest.mark.parametrize("change, message", [
    ({"format": "int2"}, "kv_layers\\[0\\].format"),
    ({"format": "fp32"}, "its layer's is float32"),
])  # fmt: skip
def test_a_cache_of_another_format_than_the_graph_has_is_refused(talking, tmp_path, change, message):
    described = json.loads((Path(talking.folder) / "bundle.json").read_text(encoding="utf-8"))
    described["kv_layers"][0].update(change)
    (tmp_path / "bundle.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(MerinoError, match=message):
        load_bundle(str(tmp_path))
