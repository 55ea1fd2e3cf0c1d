"""What a name on the command line means: a folder, a model of the catalog, a model of the hub. The real huggingface_hub
client talks to a stand-in server on loopback."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import hub
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from merino_edge.benchmarking.run import baseline_bundles
from merino_edge.embedded import FOLDER
from merino_edge.export.source import load_source
from merino_edge.families.checkpoint import check_checkpoint, check_tokenizer
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


CONFIG = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
          "intermediate_size": 64, "vocab_size": 512, "max_position_embeddings": 64}  # fmt: skip
NAME = "Org/Tiny-Instruct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint):
    """A small llama in three shards, with a tokenizer."""
    place = tmp_path_factory.mktemp("hub") / "model"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(place, max_shard_size="60KB")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(place)
    assert len(list(place.glob("*.safetensors"))) > 2
    return place


@pytest.fixture(scope="module")
def files(folder):
    results = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**results, "pytorch_model.bin": b"a pickle", "onnx/model.onnx": b"another program's"}


SEVERAL = """
import sys
from merino_edge.cli.app import main
for source in sys.argv[2:]:
    try:
        main(["export", source, "-o", sys.argv[1]])
    except SystemExit as ended:
        print("code", ended.code, file=sys.stderr)
"""


def exported(source, out, home, address="http://127.0.0.1:9", **variables):
    """The command in a process of its own, since huggingface_hub reads its variables when it is imported."""
    done = started(["-m", "merino_edge.cli.start", "export", source, "-o", str(out)], out, home, address, variables)
    return done.returncode, done.stdout, done.stderr


def started(words, out, home, address, variables):
    variables = {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", **variables}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, **variables},
        cwd=out.parent,
    )  # fmt: skip


def refusals(sources, out, home, address):
    """What each of them is refused with, in one process: torch takes seconds to load."""
    done = started(["-c", SEVERAL, str(out), *sources], out, home, address, {})
    assert done.returncode == 0 and done.stdout == "", done.stderr
    refused = done.stderr.split("code 1\n")
    assert len(refused) == len(sources) + 1 and refused[-1] == "", done.stderr
    return zip(sources, refused[:-1], strict=True)


@pytest.mark.slow
def test_a_model_is_fetched_once_and_then_comes_from_the_cache(files, tmp_path):
    with hub({NAME: files}) as (address, requests):
        code, out, output = exported(NAME, tmp_path / "bundle", tmp_path / "home", address)
        assert code == 0, output
        assert "Tiny-Instruct, fused fp32" in out and "trained weights" in out
        assert "downloading 7 files of Org/Tiny-Instruct, " in output and " of 0 MB" in output
        fetched = [path.rpartition("/")[2] for kind, path, _ in requests if kind == "GET" and "/resolve/" in path]
        assert "pytorch_model.bin" not in fetched and "model.onnx" not in fetched
        assert len(set(fetched)) == len(fetched), "each file once"
        assert fetched[0] == "config.json"
    code, _, output = exported(NAME, tmp_path / "again", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert code == 0 and "downloading" not in output, output
    assert (tmp_path / "again" / "model.onnx.data").read_bytes() == (
        tmp_path / "bundle" / "model.onnx.data"
    ).read_bytes()


FETCHED = "from merino_edge.families.hub import HubModel, fetch; fetch(HubModel('Org/Tiny-Instruct'))"
DEPLOYED = """
from merino_edge.cli.deploy import bundle_for
from merino_edge.profiles.reading import load_profile
from merino_runtime.bundle import load_bundle
made = load_bundle(str(bundle_for("Org/Tiny-Instruct", load_profile("raspberry-pi-4"), "int8", None)))
assert (made.name, made.weights_source) == ("Tiny-Instruct", "hub Org/Tiny-Instruct"), made
"""


@pytest.mark.slow
def test_deploy_asks_the_hub_for_the_list_of_files_as_often_as_one_fetch(files, tmp_path):
    lists = []
    for number, program in enumerate((FETCHED, DEPLOYED)):
        with hub({NAME: files}) as (address, requests):
            cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
            done = started(["-c", program], tmp_path / "bundle", tmp_path / f"home{number}", address, cache)
            assert done.returncode == 0, done.stderr
            lists.append(sum("/api/models/" in path for _, path, _ in requests))
    assert lists[0] == lists[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("source, variables, match", [
    ("Org/Tiny-Instruct", {}, ["cannot be reached", "hf download Org/Tiny-Instruct", "--local-dir Tiny-Instruct",
                               "export ./Tiny-Instruct"]),
    ("smollm2-135m", {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set", "hf download HuggingFaceTB/SmolLM2-135M "]),
])  # fmt: skip
def test_without_network_it_says_what_to_fetch_and_where_to_put_it(tmp_path, source, variables, match):
    code, out, output = exported(source, tmp_path / "bundle", tmp_path / "home", **variables)
    assert code == 1 and out == "" and output.startswith("merino-edge: ")
    assert [words for words in match if words not in output] == []
    assert len(output.strip().splitlines()) == 1 and not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_model_is_judged_by_its_config_before_any_weights_are_fetched(files, tmp_path):
    changes = {"Org/Hybrid": {"model_type": "qwen3_5"}, "Org/Awq": {"quantization_config": {"quant_method": "awq"}}}
    content = json.loads(files["config.json"])
    served = {
        name: {**files, "config.json": json.dumps({**content, **keys}).encode()} for name, keys in changes.items()
    }
    with hub(served) as (address, requests):
        expected = {"Org/Hybrid": "The nearest model that works is Qwen3-", "Org/Awq": "quantized by awq"}
        for name, output in refusals(list(expected), tmp_path / "bundle", tmp_path / "home", address):
            assert expected[name] in output
    fetched = {path.rpartition("/")[2] for kind, path, _ in requests if kind == "GET" and "/resolve/" in path}
    assert fetched == {"config.json"}


@pytest.mark.slow
def test_a_download_shows_its_progress_and_goes_on_after_a_broken_connection(files, tmp_path):
    name = "model.safetensors"
    with hub({NAME: {"config.json": files["config.json"], name: bytes(24 << 20)}}, cut=[name]) as (address, requests):
        _, _, output = exported(NAME, tmp_path / "bundle", tmp_path / "home", address)
    assert [begin for kind, path, begin in requests if kind == "GET" and path.endswith(name)] == [
        None, f"bytes={10 << 20}-"
    ]  # fmt: skip
    assert "10 of 24 MB" in output and "24 of 24 MB" in output and "the weights in" in output


@pytest.mark.slow
def test_models_that_cannot_be_had_are_refused_each_in_its_words(files, tmp_path):
    plain = {"config.json": files["config.json"], "pytorch_model.bin": b"a pickle"}
    served = {"Org/Gated": files, "Org/Pickle": plain, NAME: files}
    shard = next(name for name in files if name.endswith(".safetensors"))
    with hub(served, gated=["Org/Gated"], cut=[shard]) as (address, _):
        expected = {
            "Org/Gated": "Org/Gated is gated: accept its terms at https://huggingface.co/Org/Gated",
            "Org/Pickle": "Org/Pickle has no model*.safetensors on the hub. Weights as pickle (.bin) are not read",
            "Org/None": "'Org/None' is no folder here, and the hub has no such model that may be seen",
            NAME: "is not whole in the cache",
        }
        for source, output in refusals(list(expected), tmp_path / "bundle", tmp_path / "home", address):
            assert expected[source] in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_folders_that_are_not_whole(folder, tmp_path):
    def refused(judge, match, **contents):
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        for name, content in contents.items():
            (place / name.replace("__", ".")).write_bytes(content)
        with pytest.raises(MerinoError, match=match):
            judge(place)

    index = (folder / "model.safetensors.index.json").read_bytes()
    refused(check_checkpoint, "it has no config.json. It holds a.gguf: export a GGUF by the path", a__gguf=b"GGUF")
    refused(check_checkpoint, "pytorch_model.bin is a pickle, which may run code and is not read: convert it with"
            " transformers", config__json=b"{}", pytorch_model__bin=b"")  # fmt: skip
    refused(check_checkpoint, "has no model.safetensors. Copy", config__json=b"{}")
    shards = {"config__json": b"{}", "model.safetensors.index.json": index}
    refused(check_checkpoint, r"lacks \d of the files that model.safetensors.index.json names: model-00001", **shards)
    shards["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../etc/passwd"}}'
    refused(check_checkpoint, "names '../../etc/passwd', which is no safetensors file beside it", **shards)
    shards["model.safetensors.index.json"] = b'{"weight_map": []}'
    refused(check_checkpoint, "has no weight_map", **shards)
    refused(check_tokenizer, "has no tokenizer.json, .* copy it from where the weights came", config__json=b"{}")
    refused(check_tokenizer, "write one from its tokenizer.model with transformers.AutoTokenizer",
            tokenizer__model=b"")  # fmt: skip
    check_checkpoint(folder)
    check_tokenizer(folder)
