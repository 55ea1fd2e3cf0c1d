"""Quantized graphs of every published family against torch with the weights that the codes stand for.

With float activations closely, at prefill and 32 steps; with rounded ones as the export itself judges.
"""

from functools import partial

import numpy as np
import pytest

import merino_edge.export.parity as proving
from merino_edge.bundles.description import GraphFormat
from merino_edge.export.export import export
from merino_edge.export.parity import PARITY_STEPS, dequantized_model, torch_greedy, unrounded_error
from merino_edge.export.quantize.calibration import rows_to_read
from merino_edge.export.quantize.smoothquant import smoothed
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families.registry import family_of
from merino_runtime.api import selftest
from merino_runtime.backends import open_backend
from merino_runtime.errors import MerinoError
from tests.sample_bundles import quantized
from tests.sample_models import DAILY, ROPE_SCALED, SMALL, small

SCALED = ("fused", "int8")  # its channels are scaled first
KINDS = [SCALED, ("fused", "int4"), ("portable", "int8"), ("portable", "int4")]
TWO_KINDS = ("llama", "gpt_neox")  # by day, beside SCALED
CLOSE = 1e-5  # of the largest logit
MODELS = {name: small(name, context=48) for name in SMALL} | {
    "llama untied": small("llama", context=48, tied=False, rope_scaling=ROPE_SCALED)
}


@pytest.fixture(scope="module", params=MODELS)
def source(request, decoder):
    arch = MODELS[request.param]
    return Source(request.param, arch, decoder(arch, 3), "trained", "drawn", (), None)


@pytest.mark.parametrize(("source", "kind"), [
    pytest.param(name, kind, id="-".join((name, *kind)), marks=() if name in DAILY and kind == SCALED or
                 kind in KINDS[:3] and name in TWO_KINDS else pytest.mark.nightly)
    for name in MODELS for kind in KINDS
], indirect=["source"])  # fmt: skip
def test_codes_and_torchs_weights_compute_the_same(source, kind, tmp_path):
    """A window (Gemma 3, GPT-Neo) wants a later ONNX Runtime than the format does, but not in attention by groups; a
    layer that reads another's cache (Gemma 3n) wants a later one still."""
    dialect, precision = kind
    given = source if kind == SCALED else source._replace(weights="random")  # rounded without GPTQ
    exported = export(given, tmp_path / "bundle", ExportRequest(dialect=dialect, precision=precision))
    if kind == SCALED:
        source = smoothed(source, partial(rows_to_read, source, 48, None))
    matrices = quantized(source, GraphFormat(precision, dialect, 48))
    oldest = exported.bundle.backends[0].min_version
    by_groups = dialect == "fused" and source.arch.heads >= 3 * source.arch.kv_layers[0][0]
    windowed = any(getattr(source.arch, "windowed", ())) and not by_groups
    if dialect == "fused" and getattr(source.arch, "shared_layers", 0):
        assert oldest == "1.26"
    else:
        assert (oldest == "1.24") == (dialect == "fused" and windowed)
    twin = dequantized_model(source.model, matrices, source.arch.layout)
    ids = np.random.default_rng(1).integers(0, source.arch.vocab, 9).tolist()
    assert unrounded_error(exported.bundle, torch_greedy(twin, ids, PARITY_STEPS)) <= CLOSE
    assert 1e-4 < exported.error < 0.1  # rounded, and not by much
    backend = open_backend(exported.bundle)
    assert selftest(exported.bundle, backend) is None
    backend.close()


@pytest.mark.parametrize("dialect", ["fused", pytest.param("portable", marks=pytest.mark.nightly)])
def test_a_float32_bundle_gives_back_the_weights_of_any_family(source, dialect, tmp_path):
    exported = export(source, tmp_path / "bundle", ExportRequest(dialect=dialect))
    assert exported.error <= 1e-5
    folder = exported.folder
    again = load_source(str(folder))
    for name, weight in source.model.state_dict().items():
        assert np.abs(again.model.state_dict()[name] - weight).max() <= 1e-6, name
    assert family_of(again.arch) is family_of(source.arch)


def test_a_wrong_operator_is_seen_through_the_rounding(decoder, tmp_path, monkeypatch):
    """A base of the rotary frequencies that is not torch's: within the coarse bound, and not within the close one."""
    arch = small("llama", context=48)
    right, wrong = decoder(arch, 3), decoder(arch.model_copy(update={"rope_theta": 510.0}), 3)
    source = Source("lying", arch, wrong, "trained", "drawn", (), None)
    with pytest.raises(MerinoError, match="graph with float activations differs from torch"):
        export(source, tmp_path / "bundle", ExportRequest(precision="int8"))
    assert not (tmp_path / "bundle").exists()
    monkeypatch.setattr(proving, "unrounded_error", lambda *_: 0.0)
    export(source, tmp_path / "bundle", ExportRequest(precision="int8"))
    monkeypatch.undo()
    export(source._replace(model=right), tmp_path / "bundle", ExportRequest(precision="int8"))
