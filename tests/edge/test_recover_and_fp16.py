"""A bundle as a source of other bundles, and the float16 graphs that are made for GPUs, run here by casts."""

import json

import numpy as np
import onnx
import pytest
import torch

from merino_edge.export.export import export
from merino_edge.export.parity import rms_error
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.families.designed import Architecture
from merino_edge.families.opt import OptArchitecture
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.bundle.fit import check_bundle_fits
from merino_runtime.errors import MerinoError

PROMPT, STEPS = 9, 24
DIALECTS = ("fused", "portable")
MODELS = {
    "wider, shared": Architecture(
        blocks=(
            {"width": 64, "ffn_ratio": 1.5, "depth": 1},
            {"width": 128, "ffn_ratio": 2, "depth": 2, "shared": True},
        ),
        vocab=311, head_size=32, context=PROMPT + STEPS,
    ),
    "other constants": Architecture(
        blocks=({"width": 64, "ffn_ratio": 1, "depth": 2},), vocab=64, head_size=64, context=PROMPT + STEPS,
        rope_theta=500.0, rms_norm_eps=0.1,
    ),
    "square": Architecture(
        blocks=({"width": 64, "ffn_ratio": 1, "depth": 2},), vocab=64, head_size=64, context=PROMPT + STEPS
    ),
    "opt": OptArchitecture(
        width=128, layers=2, heads=4, ffn_width=256, embed_width=64, vocab=311, context=PROMPT + STEPS, pre_norm=False
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def source(request, decoder, tmp_path_factory):
    arch = MODELS[request.param]
    model = decoder(arch, 4)
    folder = tmp_path_factory.mktemp("sources") / "model"
    model.save_pretrained(folder)
    return load_source(str(folder))


@pytest.fixture(params=DIALECTS)
def dialect(request):
    return request.param


def test_a_bundle_gives_its_weights_back_bit_by_bit(source, dialect, tmp_path):
    export(source, tmp_path / "bundle", ExportRequest(dialect=dialect))
    again = load_source(str(tmp_path / "bundle"))
    assert (again.name, again.family, again.arch, again.weights) == ("model", source.family, source.arch, "trained")
    expected, result = source.model.state_dict(), again.model.state_dict()
    assert expected.keys() == result.keys()
    assert all(torch.equal(expected[name], result[name]) for name in expected)
    ids = torch.arange(PROMPT)[None]
    with torch.no_grad():
        assert torch.equal(source.model(ids).logits, again.model(ids).logits)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {"rope_theta": 10_000.0}},
        {"architecture": {"rms_norm_eps": 1e-6}},
        {"golden": {"greedy_ids": [1]}},
    ],
    ids=lambda change: str(*change.values()),
)
def test_a_bundle_whose_description_is_of_another_model_is_refused(change, decoder, tmp_path):
    """All its weights fit, but not the constants of its graph, or not its golden ids."""
    decoder(MODELS["other constants"], 4).save_pretrained(tmp_path / "model")
    export(load_source(str(tmp_path / "model")), tmp_path / "bundle")
    path = tmp_path / "bundle" / "bundle.json"
    description = json.loads(path.read_text())
    assert (description["architecture"]["rope_theta"], description["architecture"]["rms_norm_eps"]) == (500.0, 0.1)
    for key, values in change.items():
        description[key].update(values)
    path.write_text(json.dumps(description))
    with pytest.raises(MerinoError, match="bundle.json and the graph do not belong together"):
        load_source(str(tmp_path / "bundle"))


def test_only_a_whole_float32_bundle_is_a_source(source, tmp_path):
    export(source, tmp_path / "half", ExportRequest(precision="fp16"))
    with pytest.raises(MerinoError, match="fp16 weights.*export from a bundle in fp32"):
        load_source(str(tmp_path / "half"))
    export(source, tmp_path / "bundle")
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    grow(description["architecture"])
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(MerinoError, match="does not hold the model it describes|lacks weights"):
        load_source(str(tmp_path / "bundle"))


def grow(architecture):
    if "blocks" in architecture:
        architecture["blocks"][-1]["depth"] += 1
        architecture["blocks"][-1]["shared"] = False
    else:
        architecture["layers"] += 1


def test_float16_agrees_with_torch_at_every_step(source, dialect, tmp_path):
    export(source, tmp_path / "bundle", ExportRequest(dialect=dialect, precision="fp16"))
    ids = np.random.default_rng(5).integers(0, source.arch.vocab, PROMPT + STEPS)
    with torch.no_grad():
        expected = source.model(torch.tensor([ids.tolist()])).logits[0].numpy()
    backend = open_backend(load_bundle(str(tmp_path / "bundle")))
    results = [backend.prefill(ids[:PROMPT].tolist()).copy()]
    results += [backend.step(int(token)).copy() for token in ids[PROMPT:]]
    backend.close()
    errors = [rms_error(one, row) for one, row in zip(results, expected[PROMPT - 1 :], strict=True)]
    assert len(errors) == STEPS + 1
    assert 1e-5 < max(errors) < 0.01  # above: float16 it is, and not float32 by another name


def test_float16_weights_and_cache_take_half_the_bytes(source, dialect, tmp_path):
    whole, half = (
        export(source, tmp_path / precision, ExportRequest(dialect=dialect, precision=precision)).bundle
        for precision in ("fp32", "fp16")
    )
    assert half.kv_bytes == whole.kv_bytes / 2
    assert half.weight_bytes == pytest.approx(whole.weight_bytes / 2, rel=0.02)  # portable's norms stay whole
    types = {port.name: port.dtype for port in half.inputs + half.outputs}
    assert types.pop("logits") == "float32"
    assert {kind for name, kind in types.items() if "." in name} == {"float16"}
    assert half.boards == (("jetson-nano", "jetson-orin-nano") if dialect == "portable" else ())  # as TensorRT needs it
    notes = check_bundle_fits(load_bundle(str(tmp_path / "fp16")))
    assert any("for GPUs" in note for note in notes)


def test_float16_holds_each_constant_and_each_square(source, dialect, tmp_path):
    """Activations of some hundreds, whose squares float16 cannot hold: the logits stay numbers, and right ones."""
    with torch.no_grad():
        for name, weight in source.model.named_parameters():
            if "out_proj" in name or "attention.out" in name:
                weight.mul_(300)
        ids = np.random.default_rng(6).integers(0, source.arch.vocab, PROMPT)
        expected = source.model(torch.tensor([ids.tolist()])).logits[0, -1].numpy()
    try:
        export(source, tmp_path / "bundle", ExportRequest(dialect=dialect, precision="fp16"))
        backend = open_backend(load_bundle(str(tmp_path / "bundle")))
        assert rms_error(backend.prefill(ids.tolist()), expected) < 0.02
        backend.close()
        graph = onnx.load(str(tmp_path / "bundle" / "model.onnx")).graph
        for constant in graph.initializer:
            assert np.isfinite(onnx.numpy_helper.to_array(constant)).all(), constant.name
    finally:
        with torch.no_grad():
            for name, weight in source.model.named_parameters():
                if "out_proj" in name or "attention.out" in name:
                    weight.div_(300)
