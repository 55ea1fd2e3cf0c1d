"""The data of examples/house: a house can obey each of its samples; no training sample has what is held out."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "house"))

import evaluate  # noqa: E402
import houses  # noqa: E402
import make_data  # noqa: E402
from command_families import REFUSAL, families  # noqa: E402
from grammar import blocks  # noqa: E402
from houses import SPLITS, assistants, held_out_names, words  # noqa: E402
from sentences import make_sample  # noqa: E402

from merino_runtime.house import answer as answers  # noqa: E402
from merino_runtime.house.answer import to_choose_again  # noqa: E402
from merino_runtime.house.candidates import LONGEST_LISTING, candidates, whole_calls  # noqa: E402
from merino_runtime.house.house import (  # noqa: E402
    TOOLS,
    Call,
    Device,
    House,
    meanings,
    prompt,
    read_calls,
    said,
    schema,
    write_calls,
)
from merino_runtime.house.words import spoken  # noqa: E402

COUNT = 1500


@pytest.fixture(scope="module")
def samples():
    """Of each split some, by seed."""
    results = {}
    for split in SPLITS:
        rng = random.Random(7)
        results[split] = [make_sample(rng, split) for _ in range(COUNT)]
    return results


def calls(sample):
    return make_data.calls_of(sample)


def test_a_sample_is_an_answer_that_the_schema_of_its_house_allows(samples):
    any_house = jsonschema.Draft202012Validator(schema())
    for sample in samples["train"] + samples["test"]:
        done = calls(sample)
        for call in done:
            make_data.check(sample.house, call)
            assert sample.house.also or all(sample.house.resolve(target) for target in call.targets)
        assert any_house.is_valid(json.loads(write_calls(done)))
        refused = sample.kind.startswith(("missing.", "no."))
        assert bool(meanings(done, sample.house)) != refused or sample.kind == "list.add"


def test_a_right_answer_is_rarely_chosen_again(samples):
    """"the switch of the kitchen lights" can be one of two."""
    every = [(sample.house, call) for split in SPLITS for sample in samples[split] for call in calls(sample)]
    right = [(house, call) for house, call in every if call.targets]
    assert sum(bool(to_choose_again(call, house)) for house, call in right) <= len(right) / 200


def test_a_call_for_what_the_house_has_not_is_rarely_given_a_target(samples):
    """"the nursery light" may be a typing error for the scene "game night" where the nursery has no light."""
    every = [sample for split in SPLITS for sample in samples[split] if not sample.house.also]
    absent = [sample for sample in every if sample.kind.startswith("missing.")]
    assert sum(to_choose_again(sample.action, sample.house) != {} for sample in absent) <= len(absent) / 100 > 1


HOME = House((
    Device("boombox", "media_player", "snug"), Device("turntable", "media_player", "hall"),
    Device("stair lights", "light", "hall"), Device("salt lamp", "light", "snug"),
    Device("ada's desk fan", "fan", "front room"), Device("range hood", "fan", "hall"),
), "hall")  # fmt: skip


@pytest.mark.parametrize(("tool", "words", "targets", "again"), [
    ("play", "boombox", ["turntable"], {"play": [["boombox"]]}),
    ("play", "boombox", ["boombox"], {}),
    ("dim", "lights in the snug", ["stair lights"], {"dim": [["snug/light"]]}),
    ("turn_on", "adas desk fan", ["range hood"], {"turn_on": [["ada's desk fan"]]}),
    ("turn_on", "fan in the frott room", ["range hood"], {"turn_on": [["ada's desk fan", "front room/fan"]]}),
    ("turn_on", "the boombox and the salt lamp", ["boombox", "range hood"], {"turn_on": [["boombox"], ["salt lamp"]]}),
    ("turn_on", "staiir lights", [], {"turn_on": [["stair lights"]]}),
    ("set_speed", "boombox", ["range hood"], {
        name: [["boombox"]] for name, tool in TOOLS.items() if "media_player" in tool.domains and name != "get_state"
    }),
    ("set_speed", "boombox and salt lamp", ["range hood", "hall/fan"], {}),
    ("turn_on", "kettle", ["range hood"], {}), ("turn_on", "kitchen lights", [], {}),
    ("pause", "music", ["turntable"], {}), ("turn_on", "in the snug", [], {}),
    ("turn_on", "", ["salt lamp"], {}), ("start_timer", "boombox", [], {}),
])  # fmt: skip
def test_the_model_chooses_again_among_targets_that_explain_more_words(tool, words, targets, again):
    """A typing error is none; an area alone names nothing that a call without a target could mean."""
    assert to_choose_again(Call(tool, tuple(targets), (), words), HOME) == again


ROOMS = ("kitchen", "bedroom", "hall", "study", "attic")
LARGE = House((
    *(Device(name, domain, room) for room in ROOMS for name, domain in (
        ("ceiling light", "light"), (f"{room} hue white lamp 1", "light"), (f"{room} hue white lamp 2", "light"),
        ("speaker", "media_player"), ("blinds", "cover"))),
    Device("kettle", "switch", "kitchen", ("brewer",), "switch.kettle"), Device("rosie", "vacuum", "attic"),
    Device("movie night", "scene"), Device("heating", "climate", "hall"), Device("front door", "lock", "hall"),
), "kitchen", (("downstairs", ("kitchen", "hall")), ("upstairs", ("bedroom", "study", "attic"))))  # fmt: skip


@pytest.mark.parametrize(("sentence", "target"), [
    ("turn on hue white lamp two in the study", "study hue white lamp 2"), ("open the atic blinds", "attic/cover"),
    ("dim the ceiling light", "kitchen/ceiling light"), ("dim the bedroom ceiling light", "bedroom/ceiling light"),
    ("louder in the study", "study/media_player"), ("all lights off", "house/light"),
    ("lights off upstairs", "upstairs/light"),
    ("i could do with a cuppa", "kettle"), ("start the brewer", "brewer"), ("clean the floor", "rosie"),
    ("it is too cold in here", "heating"), ("let's watch a film", "movie night"), ("lock up", "front door"),
])  # fmt: skip
def test_the_candidates_of_a_large_house_have_what_a_sentence_means(sentence, target):
    shown = candidates(LARGE, sentence)
    assert shown.here == "kitchen" and len(prompt(shown, sentence)) < LONGEST_LISTING + 250
    domains = [domain for tool in TOOLS.values() for domain in tool.domains]
    assert target in shown.targets(domains)
    call = whole_calls([Call("turn_on", (target,))], shown, LARGE)[0]
    assert LARGE.resolve(call.targets[0])


def test_a_house_that_fits_is_shown_whole():
    assert candidates(HOME, "anything") == HOME


def test_a_part_of_a_house_says_what_its_areas_have_besides():
    shown = candidates(LARGE, "dim the attic ceiling light")
    listed = prompt(shown, "x")
    assert "floors: downstairs, upstairs\n" in listed and listed.endswith("> x\n")
    hidden = [device for device in LARGE.devices if device.area == "kitchen" and device not in shown.devices]
    assert hidden and all(f"kitchen/{device.domain}" in shown.targets((device.domain,)) for device in hidden)


@pytest.mark.parametrize("size", [20, 60, 150, 300])
def test_candidates_have_what_generated_sentences_ask_for(size):
    """Of 2,000 sentences in each size the record has how many; here are few."""
    rng = random.Random(size)
    cases = []
    for _ in range(5):
        house = houses.large_house(rng, "test", size)
        cases += [sample for _ in range(16) if (sample := make_sample(rng, "test", house)).house == house]
    found = [
        evaluate.recalled(evaluate.Case(sample.house, sample.sentence, (), sample.kind), calls(sample))
        for sample in cases
    ]
    assert sum(found) >= 0.95 * len(found) > 55


def test_names_are_spoken_without_punctuation():
    assert spoken("Entrance Color + White Lights") == "entrance color white lights"
    assert spoken("Anna's TV (Bedroom)") == "anna's tv bedroom"


def test_a_decoder_of_random_weights_answers_with_calls_of_the_house(chat_dir, monkeypatch):
    """What it says is cut, or is an answer whose targets the house has."""
    monkeypatch.setattr(answers, "MOST_TOKENS", 200)  # its tokens are bytes
    small = House((Device("tv", "media_player", "hall"), Device("hood", "fan", "hall")), "hall")
    with evaluate.open_model(str(chat_dir)) as model:
        given = answers.answer(model, small, "go")
        again = answers.chosen_again(Call("turn_on", ("garage",), (), 'the "hood"'), small)
        form = {"type": "array", "prefixItems": [again], "minItems": 1, "maxItems": 1}
        text, probability = answers.decoded(model, "go", form, small)
    assert all(small.resolve(target) for call in given.calls for target in call.targets)
    [call] = read_calls(text)
    assert (call.tool, call.words) == ("turn_on", 'the "hood"') and 0 <= probability <= 1
    assert all(small.resolve(target) for target in call.targets)


def test_answers_with_the_same_effect_differ_by_a_target_for_the_same_devices():
    only = House((Device("hood", "fan", "hall"), Device("lamp", "light", "snug")), "hall")
    text = write_calls([Call("turn_on", ("hood",), (), "hood"), Call("dim", ("snug/light",))])
    others = {write_calls([Call("turn_on", (target,), (), "hood"), Call("dim", ("snug/light",))])
              for target in ("hall/fan", "house/fan")}  # fmt: skip
    others |= {write_calls([Call("turn_on", ("hood",), (), "hood"), Call("dim", (target,))])
               for target in ("lamp", "house/light")}  # fmt: skip
    assert set(answers.same_effect(text, only)) == others


@pytest.mark.parametrize(("words", "name"), [
    ("pasta timer", "pasta"), ("5 minutes", "5 minute"), ("1 hour", "1 hour"), ("two hours", "two hour"),
    ("guests", "guests"),
])  # fmt: skip
def test_a_timer_has_its_bare_name(words, name):
    assert answers.in_house(Call("cancel_timer", words=words), DOOR, "cancel the timer").words == name


@pytest.mark.parametrize("name", ["slurp", "seen", "written"])
def test_the_actions_of_what_people_say_are_those_of_their_house(name):
    cases = list(evaluate.utterances(ROOT / "examples" / "house" / f"{name}.json"))
    assert len({case.sentence for case in cases}) > 0.9 * len(cases) > 100
    for case in cases:
        assert any(case.wanted) == (case.kind in ("asks", "command", "question or timer"))
        assert case.sentence == case.sentence.lower()


DOOR = House((Device("front door", "lock", "hall"),), "hall")


@pytest.mark.parametrize(("done", "asks", "column"), [
    ([], False, "refused"), ([Call("lock", ())], False, "refused"), ([Call("lock", ("front door",))], False, "right"),
    ([Call("unlock", ("front door",))], False, "wrong with effect"),
    ([Call("get_state", ("front door",))], False, "wrong without effect"),
    ([Call("get_state", ("front door",)), Call("lock", ("front door",))], False, "right"),
    ([Call("lock", ("front door",))], True, "asked, call right"),
    ([Call("unlock", ("front door",))], True, "asked, call wrong"),
])  # fmt: skip
def test_an_answer_is_counted_in_one_column(done, asks, column):
    case = evaluate.Case(DOOR, "lock the door", (meanings([Call("lock", ("house/lock",))], DOOR),), "asks")
    given = evaluate.Given(meanings(done, DOOR), asks, "", 1.0)
    counts, wrong = evaluate.judge([case], lambda *_: given)
    assert counts == {"asks": {column: 1}} and bool(wrong) == (column != "right")


def test_each_tool_is_asked_for_and_most_of_them_for_what_the_house_has_not(samples):
    for split in SPLITS:
        done = [call for sample in samples[split] for call in calls(sample)]
        assert {call.tool for call in done if call.targets or not TOOLS[call.tool].domains} == set(TOOLS)
        assert len({call.tool for call in done if not call.targets}) > 0.6 * len(TOOLS)
        refused = [sample for sample in samples[split] if sample.action == REFUSAL or sample.kind.startswith("missing")]
        assert 0.17 < len(refused) / COUNT < (0.37 if split == "train" else 0.3)
        assert sum(len(calls(sample)) > 1 for sample in samples[split]) > COUNT / 50
    assert {family.tool.partition("=")[0] for family in families()} <= set(TOOLS)


def test_what_is_held_out_is_in_no_training_sample(samples):
    held = set(held_out_names())
    for sample in samples["train"]:
        house = sample.house
        assert not held & {*house.areas, *(device.name for device in house.devices)}
        spoken = set(sample.sentence.lower().replace("'s", "").split())
        lists = ("areas", "people", "brands", "robots")
        assert not spoken & {*assistants("test"), *(name for listed in lists for name in words(listed, "test"))}
    kinds = {family.kind for family in families() if family.held_out}
    kinds |= {"no." + kind.rstrip("!") for kind in blocks("negatives") if kind.endswith("!")}
    assert not kinds & {sample.kind for sample in samples["train"]}
    assert kinds & {sample.kind for sample in samples["test"]}
    assert held & {device.name for sample in samples["test"] for device in sample.house.devices}


def test_equal_arguments_write_equal_data_whatever_the_number_of_processes(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(make_data, "CHUNK", 20)
    for processes in ("1", "2"):
        path = tmp_path / processes
        options = ["--samples", "50", "--seed", "5", "--processes", processes]
        monkeypatch.setattr(sys, "argv", ["make_data.py", str(path), *options])
        make_data.main()
        written.append(path.read_text(encoding="utf-8"))
    assert written[0] == written[1]
    rows = [json.loads(line) for line in written[0].splitlines()]
    assert len(rows) == 50
    assert all(row["prompt"].endswith(said(row["sentence"])) for row in rows)
    assert all(read_calls(row["completion"]) is not None for row in rows)


def test_the_decoder_is_within_the_budgets_that_its_page_states():
    source = str(ROOT / "examples" / "house" / "architecture.json")
    shape = ["--board", "raspberry-pi-zero-2w", "--backend", "onnxruntime", "--context", "256", "--prompt", "128"]
    command = [sys.executable, "-m", "merino_edge", "recommend", source, *shape, "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    costs = printed["sources"][0]["predicted"]["int8"]
    assert costs["decode_ms"] <= 7 and costs["prefill_ms"] <= 150 and costs["memory_mb"] <= 80


@pytest.mark.nightly
def test_the_whole_path_goes_on_where_it_was_stopped(tmp_path):
    """With few samples and steps: stopped in training, called again, and called once more when all is there."""
    out = tmp_path / "house"
    environment = {**os.environ, "HOUSE_SAMPLES": "400", "HOUSE_STEPS": "40", "CXX": "no-such-compiler"}
    command = ["sh", str(ROOT / "examples" / "house" / "make.sh"), sys.executable, str(out)]
    with subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True) as process:
        while process.poll() is None and not list(out.glob("checkpoint/trainer/checkpoint-*")):
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (out / "checkpoint" / "training.json").exists()
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    record = json.loads((out / "checkpoint" / "training.json").read_text())
    results = json.loads((out / "int8.json").read_text())
    assert record["steps_taken"] == 40 and sum(count for _, count in results["sets"]["negatives"].values()) == 500
    assert results["alone"] is False and results["wrong with an effect"]["negatives"] <= 500
    ask = [sys.executable, str(ROOT / "examples" / "house" / "ask.py"), str(out / "house-int8"), "it is dark in here"]
    printed = subprocess.run(ask, capture_output=True, check=True, text=True, cwd=ROOT).stdout
    assert re.fullmatch(r"(not sure: )?\{.*\}  \(\d+%, \d+ ms\)\n", printed), printed
    made = {path: path.stat().st_mtime_ns for path in (out / "checkpoint").glob("*")} | {out / "house.merino": None}
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    assert all(path.stat().st_mtime_ns == changed for path, changed in made.items() if changed)
    assert (out / "house.merino").is_file()
