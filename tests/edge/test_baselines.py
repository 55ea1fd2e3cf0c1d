"""Baselines by name: one bundle per measured format, exported once by each exporter; a tiny geometry in OPT's place."""

import shutil
from pathlib import Path

import pytest

from merino_edge.benchmarking import baselines
from merino_edge.benchmarking.baselines import EXPORTER_ROOMS, baseline_bundles, digest_of, exporter_digest
from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.benchmarking.run import check_baseline
from merino_edge.families import zoo
from merino_runtime.bundle import load_bundle, quantized_cache
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
    notes = []
    measured = [bundle_dirs["fused"], bundle_dirs["portable"], bundle_dirs["fused"]]
    folders = baseline_bundles("opt-350m", measured, None, notes.append)
    assert formats(folders) == [("fp32", "fused"), ("fp32", "portable")] and len(notes) == 2
    assert baseline_bundles("opt-350m", measured[::-1], None, notes.append) == folders and len(notes) == 2


def test_a_baseline_of_another_exporter_is_exported_again_and_the_old_one_removed(bundle_dirs, monkeypatch):
    notes = []
    measured = [bundle_dirs["fused"], bundle_dirs["portable"]]
    old_fused, portable = (Path(folder) for folder in baseline_bundles("opt-350m", measured, None, notes.append))
    mine = old_fused.with_name("opt-350m-fp32-fused-of-mine")
    shutil.copytree(old_fused, mine)
    monkeypatch.setattr(baselines, "exporter_digest", lambda: "0123456789ab")
    (new,) = baseline_bundles("opt-350m", measured[:1], None, notes.append)
    assert Path(new) != old_fused and formats([new]) == [("fp32", "fused")]
    assert sum("exporting" in line for line in notes) == 3
    assert sorted(old_fused.parent.iterdir()) == sorted([Path(new), portable, mine])


def test_the_exporters_digest_is_of_its_sources(tmp_path):
    """It changes with each byte and each name of a source, and with nothing else."""
    shutil.copytree(Path(baselines.__file__).parents[1] / "export", tmp_path / "export")
    digests = {digest_of([tmp_path / "export"])}
    for change in (
        lambda: (tmp_path / "export" / "parity.py").open("a").write("#"),
        lambda: (tmp_path / "export" / "dialects" / "fused.py").rename(tmp_path / "export" / "dialects" / "other.py"),
        lambda: (tmp_path / "export" / "dialects" / "new.toml").write_text(""),
    ):
        change()
        assert digest_of([tmp_path / "export"]) not in digests
        digests.add(digest_of([tmp_path / "export"]))
    (tmp_path / "export" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "export" / "__pycache__" / "parity.pyc").write_text("?")
    assert digest_of([tmp_path / "export"]) in digests
    rooms = [Path(baselines.__file__).parents[1] / room for room in EXPORTER_ROOMS]
    assert exporter_digest() == digest_of(rooms) and all((room / "__init__.py").is_file() for room in rooms)


def test_it_is_for_the_measured_bundles_kind_of_core(tiny_arch, tmp_path):
    """Else OPT would be some times slower by its graph alone."""
    measured = [tmp_path / core for core in ("no-dotprod", "dotprod")]
    for folder in measured:
        write_random_bundle(tiny_arch, "int8", folder, "timed", core=folder.name)
    folders = baseline_bundles("opt-350m", list(map(str, measured)), None, lambda _: None)
    assert [load_bundle(folder).core for folder in folders] == ["no-dotprod", "dotprod"] and len(set(folders)) == 2
    assert baseline_bundles("opt-350m", [str(measured[0])], "int8", print) == folders[:1]


def test_it_has_the_measured_bundles_cache(tiny_arch, tmp_path):
    measured = [str(tmp_path / str(kv)) for kv in (None, "int8")]
    for folder, kv in zip(measured, (None, "int8"), strict=True):
        write_random_bundle(tiny_arch, "fp32", Path(folder), "timed", kv=kv)
    folders = baseline_bundles("opt-350m", measured, None, lambda _: None)
    assert [quantized_cache(load_bundle(folder)) for folder in folders] == [None, "int8"]
    assert baseline_bundles("opt-350m", measured[1:], "fp32", print) == folders[:1]  # as shipped


def test_the_precision_can_be_fixed(bundle_dirs):
    folders = baseline_bundles("opt-350m", [bundle_dirs["portable"], bundle_dirs["fused"]], "int8", lambda _: None)
    assert formats(folders) == [("int8", "portable")]


def test_without_a_readable_bundle_it_is_the_plain_one(tmp_path):
    assert formats(baseline_bundles("opt-350m", [str(tmp_path)], None, lambda _: None)) == [("fp32", "fused")]


def test_a_folder_is_taken_as_it_is_and_has_its_own_precision(bundle_dirs):
    folder = bundle_dirs["fused"]
    assert baseline_bundles(folder, [folder], None, print) == [folder]
    with pytest.raises(MerinoError, match="--baseline-precision goes with opt-125m, opt-350m"):
        check_baseline(folder, "int8")
