"""Baselines by name: a bundle per measured format, exported once; on a tiny geometry in the place of OPT's."""

import pytest

from merino_edge.benchmarking.baselines import baseline_bundles
from merino_edge.families import zoo
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

OPT_350M = zoo.model("opt-350m")
TINY = OPT_350M.geometry.model_copy(
    update={"width": 64, "layers": 1, "heads": 2, "ffn_width": 64, "embed_width": 32, "vocab": 64, "context": 32}
)


@pytest.fixture(autouse=True)
def tiny_opt(monkeypatch, tmp_path):
    models = (zoo.model("opt-125m"), OPT_350M.model_copy(update={"geometry": TINY}))
    monkeypatch.setattr(zoo, "load_models", lambda: models)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def formats(folders):
    bundles = [load_bundle(folder) for folder in folders]
    assert {bundle.name for bundle in bundles} == {"opt-350m"}
    return [(bundle.precision, bundle.dialect) for bundle in bundles]


def test_there_is_one_per_measured_format_and_it_is_exported_once(bundle_dirs):
    said = []
    measured = [bundle_dirs["fused"], bundle_dirs["portable"], bundle_dirs["fused"]]
    found = baseline_bundles("opt-350m", measured, None, said.append)
    assert formats(found) == [("fp32", "fused"), ("fp32", "portable")] and len(said) == 2
    assert baseline_bundles("opt-350m", measured[::-1], None, said.append) == found and len(said) == 2


def test_the_precision_can_be_fixed(bundle_dirs):
    found = baseline_bundles("opt-350m", [bundle_dirs["portable"], bundle_dirs["fused"]], "int8", lambda _: None)
    assert formats(found) == [("int8", "portable")]


def test_without_a_readable_bundle_it_is_the_plain_one(tmp_path):
    assert formats(baseline_bundles("opt-350m", [str(tmp_path)], None, lambda _: None)) == [("fp32", "fused")]


def test_a_folder_is_taken_as_it_is_and_has_its_own_precision(bundle_dirs):
    folder = bundle_dirs["fused"]
    assert baseline_bundles(folder, [folder], None, print) == [folder]
    with pytest.raises(MerinoError, match="--baseline-precision goes with opt-125m, opt-350m"):
        baseline_bundles(folder, [folder], "int8", print)
