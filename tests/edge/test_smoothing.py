"""SmoothQuant for int8: every published family computes what it did, and its activations lose less."""

import numpy as np
import onnx
import pytest
import torch

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.export import export
from merino_edge.export.plan import resolve_plan
from merino_edge.export.quantize import outliers
from merino_edge.export.quantize.smoothquant import NOTE, move, sites_of, smoothed
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families.graph_ops import Norm
from merino_edge.families.registry import decoder_of, layout_of
from merino_edge.families.weights import ModelWeights
from tests.sample_bundles import parts, quantized
from tests.sample_models import SMALL, small

MODELS = {name: small(name) for name in SMALL} | {"llama untied": small("llama", tied=False)}
ROWS = np.random.default_rng(0).integers(0, 96, (4, 16))


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ROWS)).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_the_model_computes_the_same_whatever_the_factors(name, decoder):
    arch, random = MODELS[name], np.random.default_rng(1)
    model, kept = decoder(arch, 3), decoder(arch, 3)
    weights, sites = ModelWeights(model, layout_of(arch)), list(sites_of(decoder_of(arch)))
    for site in sites:
        columns = weights[site.after.weights[0]].shape[1]
        move(weights, site, np.exp(random.uniform(-3, 3, columns)).astype(np.float32))
    expected = logits(kept)
    assert np.abs(logits(model) - expected).max() < 2e-5 * np.abs(expected).max()
    state = kept.state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, state[name])}
    norms = {part for site in sites if isinstance(site.before, Norm) for part in (site.before.weight, site.before.bias)}
    assert changed >= {part for site in sites for part in site.after.weights} | norms - {None}
    assert ("lm_head.weight" in changed) == (decoder_of(arch).head == "lm_head.weight")


def with_outliers(model, arch):
    """A few channels behind each norm fifty times as large as the others, as published models have them, and read as
    weakly."""
    weights = ModelWeights(model, layout_of(arch))
    for index, site in enumerate(sites_of(decoder_of(arch))):
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
        made[share] = export(source, tmp_path / str(share), ExportRequest(precision="int4"))
    plain, few, all_of_them = made.values()
    assert all_of_them.error < 0.7 * plain.error
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
        result = smoothed(source, lambda: ROWS)
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
