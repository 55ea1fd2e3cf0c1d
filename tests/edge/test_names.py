"""What a name on the command line means, where a folder of the same name is here and where none is."""

import json

import pytest

from merino_edge.benchmarking.baselines import baseline_bundles
from merino_edge.cli.app import main
from merino_edge.embedded import FOLDER
from merino_edge.export.source import load_source
from merino_edge.families.names import bundle_path, resolve
from merino_edge.families.zoo import exportable_models, model
from merino_runtime.errors import MerinoError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_without_a_folder_of_that_name_is_a_model_and_all_else_a_path():
    assert resolve("opt-350m") is model("opt-350m")
    assert resolve("embedded") == bundle_path("embedded") == str(FOLDER)
    assert resolve("no/such") == bundle_path("no/such") == "no/such"
    assert {"opt-125m", "opt-350m", "smollm2-135m"} <= set(exportable_models())


def test_the_packaged_model_is_a_source_by_its_name():
    assert load_source("embedded").arch == load_source(str(FOLDER)).arch


def test_a_model_that_is_no_bundle_yet_is_refused_with_the_command_that_makes_one():
    with pytest.raises(MerinoError, match="OPT-350M, which is no bundle yet: .*merino-edge export opt-350m -o"):
        bundle_path("opt-350m")


TAKERS = {
    "source": load_source,
    "bundle": bundle_path,
    "baseline": lambda name: baseline_bundles(name, [], None, print),
}


@pytest.mark.parametrize("name", ["embedded", "opt-350m"])
@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_a_name_that_is_a_folder_too_is_refused_with_both_meanings(take, name, here):
    (here / name).mkdir()
    with pytest.raises(MerinoError, match=f"'{name}' is both .* and a folder here: write ./{name} for the folder"):
        take(name)


def test_both_remedies_work(here, bundle_dirs):
    """./NAME is the folder, everywhere; renamed, the name is the model again."""
    (here / "embedded").symlink_to(bundle_dirs["fused"])
    assert load_source("./embedded").name == "tiny"
    assert bundle_path("./embedded") == "./embedded"
    assert baseline_bundles("./embedded", [], None, print) == ["./embedded"]
    (here / "embedded").rename(here / "mine")
    assert load_source("embedded").name == "embedded"


def test_the_commands_refuse_it_too(here, bundle_dirs, capsys):
    (here / "embedded").symlink_to(bundle_dirs["fused"])
    for words in (["generate", "embedded", "The river"], ["bench", "embedded"], ["export", "embedded", "-o", "out"],
                  ["bench", "./embedded", "--baseline", "embedded"]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 1
        assert "'embedded' is both the packaged model and a folder here" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["generate", "./embedded", "The river", "-n", "2", "--json", "--ignore-eos"])
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] is True
