"""Graphs that return the logits of all positions give at each the figures of the default graph and of torch."""

import numpy as np
import pytest
import torch

from merino_edge.embedded import FOLDER
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_runtime.backends import onnx, open_backend
from merino_runtime.bundle import load_bundle, returns_all_logits

IDS = [0, 7, 300, 12, 45, 8, 91, 5, 33, 2, 64, 17, 9]
FORMS = [
    {"dialect": "fused", "precision": "fp32"}, {"dialect": "portable", "precision": "fp32"},
    {"dialect": "fused", "precision": "int4"},
    *(pytest.param(form, marks=pytest.mark.nightly) for form in (
        {"dialect": "portable", "precision": "int8"}, {"dialect": "fused", "precision": "int8", "core": "no-dotprod"},
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def source():
    return load_source(str(FOLDER))


def rows(backend, first, ids):
    return np.concatenate([logits.copy() for logits in backend.logits_from(first, ids)])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_all_logits(form, source, tmp_path, monkeypatch):
    """Behind a filled cache and over several runs of the graph; `prefill` and `step` are as ever."""
    monkeypatch.setattr(onnx, "PREFILL_CHUNK_IDS", 5)
    default, every = (tmp_path / name for name in ("default", "all"))
    export(source, default, ExportRequest(**form))
    made = export(source, every, ExportRequest(**form, all_logits=True)).bundle
    assert returns_all_logits(made) and not returns_all_logits(load_bundle(str(default)))
    assert [need.name for need in made.backends] == ["onnxruntime"]
    with torch.no_grad():
        expected = source.model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    one, other = open_backend(load_bundle(str(default))), open_backend(made)
    try:
        for backend in (one, other):
            backend.prefill(IDS[:2])
        stepwise, whole = rows(one, 3, IDS[2:]), rows(other, 3, IDS[2:])
        assert one.ids == other.ids == IDS and stepwise.shape == whole.shape == (len(IDS) - 5, made.vocab)
        scale = np.abs(expected).max()
        if form["precision"] == "fp32":
            assert np.abs(stepwise - expected[5:]).max() < 1e-4 * scale
            assert np.abs(whole - expected[5:]).max() < 1e-4 * scale
        else:
            assert np.abs(whole - stepwise).mean() < 0.02 * scale
        other.truncate(2)
        assert np.allclose(other.prefill(IDS[2:]), whole[-1], atol=0.02 * scale)
        other.truncate(len(IDS) - 1)
        assert np.allclose(other.step(IDS[-1]), whole[-1], atol=0.02 * scale)
    finally:
        one.close()
        other.close()
