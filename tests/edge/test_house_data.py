"""The data of examples/house: a house can obey each of its samples; no training sample has what is held out."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / "house"), str(ROOT / "bench" / "experiments")]

import house as evaluate  # noqa: E402
import items  # noqa: E402
import samples as program  # noqa: E402
from grammar import blocks  # noqa: E402
from items import SPLITS, assistants, held_out_names, words  # noqa: E402
from refer import MARKS  # noqa: E402
from refusals import make_sample  # noqa: E402
from sentences import families  # noqa: E402

from merino_edge.jobs.folder import read_job  # noqa: E402
from merino_runtime.errors import MerinoError  # noqa: E402
from merino_runtime.house import answer as answers  # noqa: E402
from merino_runtime.house.answer import to_choose_again  # noqa: E402
from merino_runtime.house.candidates import LONGEST_LISTING, candidates, whole_calls  # noqa: E402
from merino_runtime.house.house import (  # noqa: E402
    SHORT,
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


def test_a_sample_is_an_answer_that_the_schema_of_its_house_allows(samples):
    any_house = jsonschema.Draft202012Validator(schema())
    for sample in samples["train"] + samples["test"]:
        done = sample.calls
        assert not set(MARKS) & set(sample.sentence + "".join(call.words for call in done))
        for call in done:
            program.check(sample.house, call)
            assert sample.house.also or all(sample.house.resolve(target) for target in call.targets)
        assert any_house.is_valid(json.loads(write_calls(done)))
        refused = sample.kind.startswith(("missing.", "no."))
        assert bool(meanings(done, sample.house)) != refused or sample.kind == "list.add"


def test_a_right_answer_is_rarely_chosen_again(samples):
    """"the switch of the kitchen lights" can be one of two."""
    every = [(sample.house, call) for split in SPLITS for sample in samples[split] for call in sample.calls]
    right = [(house, call) for house, call in every if call.targets]
    assert sum(bool(to_choose_again(call, house)) for house, call in right) <= len(right) / 200


def test_a_call_for_what_the_house_has_not_is_rarely_given_a_target(samples):
    """"the nursery light" may be a typing error for the scene "game night" where the nursery has no light."""
    every = [sample for split in SPLITS for sample in samples[split] if not sample.house.also]
    absent = [sample for sample in every if sample.kind.startswith("missing.")]
    assert sum(to_choose_again(sample.calls[0], sample.house) != {} for sample in absent) <= len(absent) / 100 > 1


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
        house = items.new_house(rng, "test", size)
        cases += [sample for _ in range(16) if (sample := make_sample(rng, "test", house)).house == house]
    found = [evaluate.recalled(sample.house, sample.sentence, sample.calls) for sample in cases]
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


def test_the_limit_for_questions_is_the_bundles(tmp_path):
    assert answers.threshold(str(tmp_path)) == answers.SURE
    (tmp_path / "job.json").write_text('{"schema": 1, "tools": [], "threshold": 0.4}')
    assert answers.threshold(str(tmp_path)) == 0.4
    (tmp_path / "job.json").write_text('{"threshold": 0.4}')
    with pytest.raises(MerinoError, match="is not of this version: make the bundle again"):
        answers.threshold(str(tmp_path))


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
    cases = list(evaluate.utterances(ROOT / "bench" / "experiments" / f"house_{name}.json"))
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
        done = [call for sample in samples[split] for call in sample.calls]
        assert {call.tool for call in done if call.targets or not TOOLS[call.tool].domains} == set(TOOLS)
        assert len({call.tool for call in done if not call.targets}) > 0.6 * len(TOOLS)
        refused = [sample for sample in samples[split] if not sample.calls or sample.kind.startswith("missing")]
        assert 0.17 < len(refused) / COUNT < (0.37 if split == "train" else 0.3)
        assert sum(len(sample.calls) > 1 for sample in samples[split]) > COUNT / 50
    assert {family.tool for family in families()} <= set(TOOLS)


def test_what_is_held_out_is_in_no_training_sample(samples):
    held = set(held_out_names())
    for sample in samples["train"]:
        house = sample.house
        assert not held & {*house.areas, *(device.name for device in house.devices)}
        spoken = set(sample.sentence.lower().replace("'s", "").split())
        lists = ("areas", "people", "brands", "robots")
        assert not spoken & {*assistants("test"), *(name for listed in lists for name in words(listed, "test"))}
    kinds = {family.kind for family in families() if family.held_out}
    kinds |= {"no." + kind.rstrip("!") for kind in blocks("refusals") if kind.endswith("!")}
    assert not kinds & {sample.kind for sample in samples["train"]}
    assert kinds & {sample.kind for sample in samples["test"]}
    assert held & {device.name for sample in samples["test"] for device in sample.house.devices}


def test_equal_arguments_make_equal_data():
    first, again, other = (list(program.samples(4, seed)) for seed in (5, 5, 6))
    assert first == again != other
    for row in first:
        assert len(row["prompt"]) == len(row["completion"]) == program.TURNS
        assert all(read_calls(text) is not None for text in row["completion"])
    rows = list(program.tests(30, 5))
    assert rows == list(program.tests(30, 5)) and all(row["prompt"].endswith(said(row["sentence"])) for row in rows)


def features(sample):
    """What the distribution of samples is compared by."""
    kind, floors = sample.kind.split("."), [floor for floor, _ in sample.house.floors]
    yield "kind " + (".".join(kind[:2]) if kind[0] == "missing" else kind[0])
    yield f"calls {len(sample.calls)}"
    for call in sample.calls[:1]:
        yield f"tool {TOOLS[call.tool].short}"
        yield f"targets {len(call.targets)}"
        yield "words" if call.words else "no words"
        yield from (f"value {SHORT.get(name, name)}" for name, _ in call.values)
        for place, _, domain in (target.partition("/") for target in call.targets):
            named = {"house": "house", sample.house.here: "here", **dict.fromkeys(floors, "floor")}
            yield f"target {named.get(place, 'area') if domain else 'device'}"


@pytest.mark.parametrize("split", SPLITS)
def test_samples_keep_their_distribution(samples, split):
    """house_shares.json has the shares of 20,000 samples for training and 6,000 for tests, of the generator that was
    last judged."""
    shares = json.loads((Path(__file__).parent / "house_shares.json").read_text())[split]
    found = Counter(feature for sample in samples[split] for feature in features(sample))
    expected = {feature: share * COUNT for feature, share in shares.items()}
    off = {feature: (found[feature], count) for feature, count in expected.items()
           if abs(found[feature] - count) > max(count / 3, 4 * count**0.5)}  # fmt: skip
    assert off == {}


def test_few_sentences_are_said_twice(samples):
    for split in SPLITS:
        assert len({sample.sentence for sample in samples[split]}) > 0.97 * COUNT


def test_the_folder_is_a_job_whose_tools_are_those_of_the_board():
    job = read_job(ROOT / "examples" / "house")
    listed = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in job.tools}
    assert list(listed) == list(TOOLS)
    for name, tool in TOOLS.items():
        assert tool.values.items() <= listed[name].items() and ("targets" in listed[name]) == bool(tool.domains)
    assert job.program.TURNS and job.settings.decoder.vocab == json.loads(
        (ROOT / "examples" / "house" / job.settings.decoder.architecture).read_text())["vocab"]


def test_the_decoder_is_within_the_budgets_that_its_page_states():
    source = str(ROOT / "examples" / "house" / "architecture.json")
    shape = ["--board", "raspberry-pi-zero-2w", "--context", "256"]
    command = [sys.executable, "-m", "merino_edge", "recommend", source, *shape, "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    costs = printed["sources"][0]["predicted"]["int8"]
    assert costs["decode_ms"] <= 7 and costs["prefill_ms"] <= 150 and costs["memory_mb"] <= 80


@pytest.mark.nightly
def test_the_whole_path_makes_a_package_that_answers(tmp_path, here):
    """With few samples and steps."""
    folder, out = tmp_path / "house", tmp_path / "out"
    shutil.copytree(ROOT / "examples" / "house", folder)
    settings = (folder / "job.toml").read_text()
    for name, value in (("samples", 400), ("test", 40), ("steps", 20)):
        settings = re.sub(rf"^{name} = \d+", f"{name} = {value}", settings, flags=re.MULTILINE)
    (folder / "job.toml").write_text(settings)
    code, printed, err = here("job", "make", folder, "-o", out)
    assert code == 0 and "step 7 of 7, package" in err and "is asked for first" in printed
    judged = json.loads((out / "evaluation.json").read_text())
    assert sum(judged["counts"]["all"].values()) == 20 and (out / "house.merino").is_file()
    with evaluate.open_model(str(out / "bundle")) as model:
        given = answers.answer(model, DOOR, "lock the door")
    assert all(DOOR.resolve(target) for call in given.calls for target in call.targets)
