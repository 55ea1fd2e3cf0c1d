"""What a name on the command line means: a folder, a model of the catalog, a model of the hub. The real huggingface_hub
client talks to a stand-in server on loopback.

The catalog is compared with what was published and with real transformers models; the switches of a geometry each.
"""

import json
import os

import forked
import pytest
import torch
from few_examples import examples
from hub_server import hub
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from merino_edge.benchmarking.run import baseline_bundles
from merino_edge.embedded import FOLDER
from merino_edge.export.export import export
from merino_edge.export.parity import GOLDEN_STEPS, greedy_ids
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source, random_source
from merino_edge.families import operators
from merino_edge.families.checkpoint import check_checkpoint, check_tokenizer
from merino_edge.families.names import bundle_path, resolve
from merino_edge.families.registry import FAMILIES
from merino_edge.families.zoo import Model, exportable_models, load_models, model
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


# huggingface_hub reads its variables when it is imported.
IMPORTED_ANEW = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]
"""


def exported(source, out, home, address="http://127.0.0.1:9", **variables):
    """(exit code, stdout, stderr)"""
    return run(["export", source, "-o", out], "", out.parent, home, address, **variables)


def run(words, program, folder, home, address, **variables):
    """(exit code, stdout, stderr) of a command in the folder after the program, with the hub at the address."""
    variables = {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", **variables}
    done = forked.run(words, first=IMPORTED_ANEW + program, cwd=folder, env={**os.environ, **variables})
    return done.returncode, done.stdout, done.stderr


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
made = load_bundle(str(bundle_for("Org/Tiny-Instruct", load_profile("raspberry-pi-4"), "int8")))
assert (made.name, made.weights_source) == ("Tiny-Instruct", "hub Org/Tiny-Instruct"), made
"""


@pytest.mark.slow
def test_deploy_asks_the_hub_for_the_list_of_files_as_often_as_one_fetch(files, tmp_path):
    lists = []
    for number, program in enumerate((FETCHED, DEPLOYED)):
        with hub({NAME: files}) as (address, requests):
            home, cache = tmp_path / f"home{number}", str(tmp_path / "cache")
            code, _, err = run(["export", "--help"], program, tmp_path, home, address, XDG_CACHE_HOME=cache)
            assert code == 0, err
            lists.append(sum("/api/models/" in path for _, path, _ in requests))
    assert lists[0] == lists[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("source, variables, match", [
    ("Org/Tiny-Instruct", {}, ["cannot be reached", "hf download Org/Tiny-Instruct", "--local-dir Tiny-Instruct",
                               "give ./Tiny-Instruct instead"]),
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
        for name, message in expected.items():
            code, out, err = exported(name, tmp_path / "bundle", tmp_path / "home", address)
            assert (code, out) == (1, "") and message in err
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
            NAME: "is not complete in the cache",
        }
        for source, message in expected.items():
            code, out, err = exported(source, tmp_path / "bundle", tmp_path / "home", address)
            assert (code, out) == (1, "") and message in err
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


MODELS = {entry.id: entry for entry in load_models()}
KNOWN = {
    "opt-350m": 331_196_416, "gpt2": 124_439_808, "pythia-70m": 70_426_624, "smollm-135m": 134_515_008,
    "tinystories-1m": 3_745_984, "qwen2.5-0.5b": 494_032_768,
}  # fmt: skip


def real_config(family, geometry):
    """transformers' own config of a geometry, in the words of its family."""
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return FAMILIES[family].config_of(geometry, **ids)


def real_model(family, geometry, device):
    with torch.device(device):
        return FAMILIES[family].model_class()(real_config(family, geometry))


@pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)
def test_a_models_parameters_are_those_published(entry):
    counted = operators.params(entry.geometry.operators)
    if entry.params.exact:
        assert counted == entry.params.value
    assert counted == pytest.approx(entry.params.value, rel=0.01)
    assert counted == KNOWN.get(entry.id, counted)


@pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)
def test_a_models_parameters_are_those_of_a_real_one(entry):
    real = real_model(entry.family, entry.geometry, "meta")
    assert operators.params(entry.geometry.operators) == sum({id(p): p.numel() for p in real.parameters()}.values())


@st.composite
def geometries(draw):
    """Small ones of each family, with what that family may vary."""
    family = draw(st.sampled_from(sorted({entry.family for entry in MODELS.values()})))
    size, heads = draw(st.sampled_from([8, 16])), draw(st.sampled_from([2, 4]))
    base = next(entry.geometry for entry in MODELS.values() if entry.family == family)
    layers, width = 2 * draw(st.integers(1, 2)), heads * size * draw(st.integers(1, 1 if family == "stablelm" else 2))
    possible = {
        "layers": layers, "width": width, "heads": heads, "kv_heads": draw(st.sampled_from([heads, heads // 2])),
        "head_size": size, "ffn_width": draw(st.sampled_from([24, 64])), "vocab": draw(st.integers(50, 200)),
        "context": 16, "embed_width": draw(st.sampled_from([width, 8])), "pre_norm": draw(st.booleans()),
        "windowed": [getattr(base, "window", None) is not None and draw(st.booleans()) for _ in range(layers)],
        "rotated": size // 2,
        "rope_scaling": None, "rotated_layers": [True] * layers, "attends": [True] * layers,
        "tied": draw(st.booleans()), "parallel": draw(st.booleans()),
        "activation": draw(st.sampled_from(["gelu", "relu"])),
    }  # fmt: skip
    update = {key: value for key, value in possible.items() if key in type(base).model_fields}
    return family, base.model_validate({**base.model_dump(), **update})


@given(geometries())
@examples(25)
def test_parameters_and_cache_are_those_of_a_real_model_whatever_its_shape(sample):
    family, geometry = sample
    real, tokens = real_model(family, geometry, "cpu").eval(), 12
    assert operators.params(geometry.operators) == sum({id(p): p.numel() for p in real.parameters()}.values())
    cache = DynamicCache()
    with torch.no_grad():
        real(input_ids=torch.arange(tokens)[None] % geometry.vocab, cache=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert operators.kv_bytes(geometry.operators, tokens) == held


def test_each_id_names_one_model():
    assert len(MODELS) == len(load_models())


@pytest.mark.parametrize("change", [
    {"ID": 1}, {"id": "GPT 2"}, {"family": "nobody's"}, {"geometry": {}},
    {"params": {"value": 0, "exact": True, "source": ""}},
    {"scores": {"source": "", "percent": {"helaswag": 30.0}}},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_a_fault_of_an_entry_is_an_error(change):
    entry = {**MODELS["gpt2"].model_dump(), "geometry": MODELS["gpt2"].geometry.model_dump()}
    assert Model.model_validate(entry) == MODELS["gpt2"]
    with pytest.raises((ValidationError, KeyError)):
        Model.model_validate({**entry, **change})


def few_layers(geometry):
    """The geometry with its last layers alone, of which each kind is there, and with a small vocabulary and context."""
    fields = geometry.model_dump()
    layered = {
        name: value for name, value in fields.items() if isinstance(value, tuple) and len(value) == geometry.layers
    }
    count = next(
        count for count in range(1, geometry.layers + 1)
        if all(set(value[-count:]) == set(value) for value in layered.values())
    )  # fmt: skip
    cut = {name: value[-count:] for name, value in layered.items()}
    return type(geometry)(**{**fields, **cut, "layers": count, "vocab": 311, "context": 64})


@pytest.mark.nightly
@pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)
def test_layers_of_each_geometry_export_with_random_weights_and_continue_as_torch_does(entry, tmp_path):
    arch = few_layers(entry.geometry)
    dialect = "portable" if any(size % 16 for _, size in arch.kv_layers) else "fused"
    done = export(random_source(arch, entry.id), tmp_path / "bundle", ExportRequest(dialect=dialect))
    golden = done.bundle.golden
    assert done.error < 1e-4 and len(golden.greedy_ids) == GOLDEN_STEPS
    assert greedy_ids(done.bundle, golden.prompt_ids, GOLDEN_STEPS) == golden.greedy_ids
