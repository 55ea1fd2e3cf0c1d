"""The embedded model is what its README says, and the house model answers sentences for a house, whole and in part."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from merino_edge.bundles.description import GraphFormat, ModelFacts, describe
from merino_edge.embedded import FOLDER
from merino_edge.families.designed import Architecture
from merino_runtime.api import open_model, selftest
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.house.answer import answer, span
from merino_runtime.house.house import Device, House, read_calls
from tests.sample_models import mean_loss

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


ROOT = Path(__file__).resolve().parents[2]
HOUSE = FOLDER.parent / "house"


@pytest.fixture(scope="module")
def model():
    with open_model(str(HOUSE)) as opened:
        yield opened


@pytest.fixture(scope="module")
def home():
    content = json.loads((ROOT / "examples" / "house" / "house.json").read_text(encoding="utf-8"))
    return House(tuple(Device(*device) for device in content["devices"]), content["here"])


SENTENCES = {
    "turn off the ceiling light": [("turn_off", ("ceiling light",), {})],
    "turn off the kitchen lights": [("turn_off", ("kitchen/light",), {})],
    "lock the front door": [("lock", ("front door",), {})],
    "it is dark in here": [("turn_on", ("kitchen/light",), {})],
    "set the thermostat to 21 degrees": [("set_temperature", ("thermostat",), {"degrees": 21})],
    "is the front door locked": [("get_state", ("front door",), {"state": "locked"})],
    "start a timer for ten minutes": [("start_timer", (), {"minutes": 10})],
    "don't turn on the coffee maker": [],
    "what is the capital of france": [],
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_model_does_what_is_asked(model, home, sentence):
    given = answer(model, home, sentence)
    assert [(call.tool, call.targets, dict(call.values)) for call in given.calls] == SENTENCES[sentence], given.text
    assert not given.asks


def test_an_answer_to_two_commands_is_asked_for_if_it_is_less_sure_than_the_limit(model, home):
    sentence = "turn off the tv and close the blinds"
    sure, unsure = (answer(model, home, sentence, limit) for limit in (0.0, 1.0))
    for given in (sure, unsure):
        assert [(call.tool, call.targets) for call in given.calls] == [("turn_off", ("tv",)), ("close", ("blinds",))]
        assert 0 < given.probability < 1
    assert not sure.asks and unsure.asks


def test_unlocking_is_asked_for(model, home):
    given = answer(model, home, "unlock the front door")
    assert given.asks and given.calls[0].openai() == {
        "name": "unlock", "arguments": {"words": "front door", "targets": ["front door"]}
    }  # fmt: skip


def test_the_bundle_is_small():
    files = [path for path in HOUSE.iterdir() if path.suffix != ".md"]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert json.loads((HOUSE / "bundle.json").read_text())["precision"] == "int8"


def test_words_are_those_of_the_sentence():
    assert span("laundry room", "shorten laundry timer by ten minutes") == "laundry"
    assert span("upper icge hood running", "have the upper range hood running") == "upper range hood running"
    assert span("kettle", "have the upper range hood running") == "kettle"
    assert span("range hood", "have the upper range hood running") == "range hood"
    assert read_calls("[[") is None and read_calls('[["fly","x",[]]]') is None and read_calls("[]") == []


@pytest.mark.parametrize("rooms", [4, 40])
def test_a_device_of_a_large_house_is_found_by_name_and_room(model, rooms):
    """Names that occur in each room are told apart by the room that is said, or that the speaker is in."""
    names = ("kitchen", "bedroom", "hall", "study", *(f"room {number}" for number in range(rooms - 4)))
    devices = [Device(name, "light", room) for room in names for name in ("ceiling light", "desk lamp", "wall light")]
    house = House((*devices, *(Device("speaker", "media_player", room) for room in names)), "bedroom")
    [call] = answer(model, house, "turn off the desk lamp in the study").calls
    assert house.resolve(call.targets[0]) == {Device("desk lamp", "light", "study")}
    [call] = answer(model, house, "turn on the desk lamp").calls
    assert house.resolve(call.targets[0]) == {Device("desk lamp", "light", "bedroom")}
