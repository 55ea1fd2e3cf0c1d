"""The embedded model is what its README says."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from merino_edge.bundles.board_app import write_board_app
from merino_edge.embedded import FOLDER
from merino_edge.evaluation.perplexity import bundle_perplexity
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.selftest import selftest

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
    assert load_bundle(str(FOLDER)).params == 1_791_872


@pytest.mark.skipif(not DATA, reason="MERINO_DATA names no folder with tinystories_valid.txt")
def test_the_boards_runtime_reaches_the_perplexity_of_training():
    """Step by step over held-out stories: the exported graph and its cache lose nothing."""
    found = bundle_perplexity(FOLDER, Path(DATA) / "tinystories_valid.txt")
    assert found.tokens > 19_000
    assert found.loss == pytest.approx(RECORD["held_out_loss"], rel=0.03)


def test_its_board_application_is_todays(tmp_path):
    """`python -m merino_edge.bundles.board_app merino_edge/embedded/bundle` renews it."""
    write_board_app(tmp_path / "merino.pyz")
    today, kept = (zipfile.ZipFile(folder / "merino.pyz") for folder in (tmp_path, FOLDER))
    assert {name: kept.read(name) for name in kept.namelist()} == {name: today.read(name) for name in today.namelist()}
