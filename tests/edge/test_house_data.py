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
import make_data  # noqa: E402
from agreement import SURE_UNEXPLAINED, least_probability, to_choose_again  # noqa: E402
from command_families import families  # noqa: E402
from grammar import blocks  # noqa: E402
from house import (  # noqa: E402
    REFUSE,
    SURE,
    TOOLS,
    Action,
    Device,
    House,
    read_action,
    said,
    tools,
)
from houses import SPLITS, assistants, held_out_names, words  # noqa: E402
from sentences import make_sample  # noqa: E402

COUNT = 1500


@pytest.fixture(scope="module")
def samples():
    """Of each split some, by seed."""
    results = {}
    for split in SPLITS:
        rng = random.Random(7)
        results[split] = [make_sample(rng, split) for _ in range(COUNT)]
    return results


def test_a_sample_is_a_call_that_the_tools_of_its_house_allow(samples):
    for sample in samples["train"] + samples["test"]:
        make_data.check(sample.house, sample.action)
        call = json.loads(sample.action.text())
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools(sample.house)}
        jsonschema.validate(call["arguments"], schemas[call["name"]])
        assert all(sample.house.resolve(target) for target in sample.action.targets)
        assert bool(sample.action.targets) != sample.kind.startswith(("missing.", "no."))


def test_a_right_answer_is_not_chosen_again(samples):
    for sample in samples["train"] + samples["test"]:
        assert not sample.action.targets or to_choose_again(sample.action, sample.house) == {}, sample


def test_a_call_for_what_the_house_has_not_is_rarely_given_a_target(samples):
    """"the nursery light" may be a typing error for the scene "game night" where the nursery has no light."""
    absent = [sample for each in samples.values() for sample in each if sample.kind.startswith("missing.")]
    assert sum(to_choose_again(sample.action, sample.house) != {} for sample in absent) <= len(absent) / 100 > 3


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
        tool: [["boombox"]] for tool, (domains, _) in TOOLS.items() if "media_player" in domains
    }),
    ("set_speed", "boombox and salt lamp", ["range hood", "hall/fan"], {}),
    ("turn_on", "kettle", ["range hood"], {}), ("turn_on", "kitchen lights", [], {}),
    ("pause", "music", ["turntable"], {}), ("turn_on", "in the snug", [], {}),
    ("turn_on", "", ["salt lamp"], {}), ("refuse", "", [], {}),
])  # fmt: skip
def test_the_model_chooses_again_among_targets_that_explain_more_words(tool, words, targets, again):
    """A typing error is none; an area alone names nothing that a call without a target could mean."""
    assert to_choose_again(Action(tool, tuple(targets), (), words), HOME) == again


@pytest.mark.parametrize(("words", "targets", "least"), [
    ("kettle", ["range hood"], SURE_UNEXPLAINED), ("cooker hood", ["range hood"], SURE), ("", ["range hood"], SURE),
    ("kettle", [], SURE), ("kettle and salt lamp", ["range hood", "salt lamp"], SURE),
    ("in the room", ["hall/light"], SURE),
])  # fmt: skip
def test_a_call_that_explains_no_word_has_to_be_surer(words, targets, least):
    action = Action("turn_on", tuple(targets), (), words)
    assert least_probability(action, HOME) == least
    assert evaluate.is_sure(action.text(), least, HOME) and not evaluate.is_sure(action.text(), least - 0.01, HOME)


def test_the_second_choice_keeps_the_words_and_takes_one_of_the_better_targets(chat_dir, monkeypatch):
    """Of a decoder of random weights, which by itself says something else."""
    monkeypatch.setattr(evaluate, "MOST_TOKENS", 160)  # its tokens are bytes
    small = House((Device("tv", "media_player", "hall"), Device("hood", "fan", "hall")), "hall")
    with evaluate.open_model(str(chat_dir)) as model:
        text, probability = evaluate.chosen(model, small, "go", 'the "hood"', {"turn_on": [["hood", "hall/fan"]]})
    answer = read_action(text)
    assert (answer.tool, answer.words, len(answer.targets)) == ("turn_on", 'the "hood"', 1)
    assert answer.targets[0] in ("hood", "hall/fan") and 0 <= probability <= 1


@pytest.mark.parametrize("name", ["slurp", "seen", "written"])
def test_the_actions_of_what_people_say_are_those_of_their_house(name):
    cases = list(evaluate.utterances(ROOT / "examples" / "house" / f"{name}.json"))
    assert len({case.sentence for case in cases}) > 0.9 * len(cases) > 100
    for case in cases:
        for text in case.actions:
            make_data.check(case.house, read_action(text))
            assert read_action(text).targets
        assert bool(case.actions) == (case.kind in ("asks", "command")) and case.sentence == case.sentence.lower()


@pytest.mark.parametrize(("answer", "wrong_acted"), [
    ('{"name":"refuse","arguments":{}}', []), ('{"name":"lock","arguments":{"words":"gate","targets":[]}}', []),
    ('{"name":"lock","arguments":{"words":"door","targets":["front door"]}}', [True]), ('{"name":"lock', [False]),
])  # fmt: skip
def test_an_answer_has_an_effect_where_it_names_a_target(answer, wrong_acted):
    case = evaluate.Case(House((Device("front door", "lock", "hall"),), "hall"), "lock the gate", [], "missing")
    right, count, wrong = evaluate.judge([case], lambda *_: answer)
    assert [row["acted"] for row in wrong] == wrong_acted
    assert count == {"missing": 1} and right["missing"] == (not wrong)


def test_each_tool_is_asked_for_and_most_of_them_for_what_the_house_has_not(samples):
    tools_used = {family.tool.partition("=")[0] for family in families()}
    for split in SPLITS:
        obeyed = {sample.action.tool for sample in samples[split] if sample.action.targets}
        refused = [sample for sample in samples[split] if not sample.action.targets]
        assert obeyed == tools_used
        without_target = {sample.action.tool for sample in refused}
        assert REFUSE in without_target and len(without_target) > 0.7 * len(tools_used)
        assert 0.17 < len(refused) / COUNT < (0.37 if split == "train" else 0.3)


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
    assert all(row["prompt"].endswith(said(row["sentence"])) and read_action(row["completion"]) for row in rows)


def test_the_decoder_is_within_the_budgets_that_its_page_states():
    source = str(ROOT / "examples" / "house" / "architecture.json")
    shape = ["--device", "raspberry-pi-zero-2w", "--backend", "onnxruntime", "--context", "256", "--prompt", "128"]
    command = [sys.executable, "-m", "merino_edge", "score", source, *shape, "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    costs = printed["sources"][0]["predicted"]["int8"]
    assert costs["decode_ms"] <= 4 and costs["prefill_ms"] <= 150 and costs["memory_mb"] <= 80


@pytest.mark.nightly
def test_the_whole_path_goes_on_where_it_was_stopped(tmp_path):
    """With few samples and steps: stopped in training, called again, and called once more when all is there."""
    out = tmp_path / "house"
    environment = {**os.environ, "HOUSE_SAMPLES": "400", "HOUSE_STEPS": "40", "CXX": "no-such-compiler"}
    command = ["sh", str(ROOT / "examples" / "house" / "make.sh"), sys.executable, str(out)]
    with subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True) as process:
        while process.poll() is None and not list(out.glob("checkpoint/trainer/checkpoint-*/saved.json")):
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
