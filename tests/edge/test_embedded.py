"""The embedded model is what its README says."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from merino_edge.bundles.description import GraphFormat, ModelFacts, describe
from merino_edge.embedded import FOLDER
from merino_edge.families.designed import Architecture
from merino_runtime.api import selftest
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from tests.sample_bundles import mean_loss

DATA = os.environ.get("MERINO_DATA")
RECORD = json.loads((FOLDER.parent / "training.json").read_text())


@pytest.fixture(scope="module")
def backend():
    opened = open_backend(load_bundle(str(FOLDER)))
    yield opened
    opened.close()


def test_its_golden_ids_come_out(backend):
    assert selftest(load_bundle(str(FOLDER)), backend) is None


def test_its_readme_quotes_the_record():
    text = (FOLDER.parent / "README.md").read_text()
    assert f"{RECORD['held_out_loss']:.3f}" in text
    assert f"{RECORD['held_out_perplexity']:.2f}" in text
    assert f"{RECORD['held_out_tokens']:,}" in text
    assert f"{RECORD['recipe']['steps']:,} steps" in text
    assert f"{load_bundle(str(FOLDER)).params:,}" in text


@pytest.mark.skipif(not DATA, reason="MERINO_DATA names no folder with tinystories_valid.txt")
def test_the_boards_runtime_reaches_the_perplexity_of_training():
    """Step by step over held-out stories: the exported graph and its cache lose nothing."""
    loss, tokens = mean_loss(FOLDER, Path(DATA) / "tinystories_valid.txt")
    assert tokens > 19_000
    assert loss == pytest.approx(RECORD["held_out_loss"], rel=0.03)


def test_its_description_is_what_todays_exporter_writes():
    """All that needs no torch: counts, boards, and the model's files, of which merino.pyz is none."""
    bundle = load_bundle(str(FOLDER))
    arch = Architecture.model_validate(bundle.architecture)
    model = ModelFacts(bundle.name, bundle.family, arch, bundle.weights, bundle.weights_source, bundle.stop_ids)
    form = GraphFormat(bundle.precision, bundle.dialect, bundle.context)
    names = ("inputs", "outputs", "weight_bytes", "decode_weight_bytes")
    graph = SimpleNamespace(**{name: getattr(bundle, name) for name in names}, oldest="1.10", own_kernels=())
    assert describe(FOLDER, model, graph, form, bundle.golden, bundle.threads) == bundle
    names = ["genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"]
    assert [file.path for file in bundle.files] == names
