"""A job from its folder to a bundle that answers: a robot's moves, at tiny size; and what is wrong in a folder."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from merino_edge.jobs.data import fitted, part, samples
from merino_edge.jobs.folder import new_job, read_job
from merino_edge.jobs.make import HOUSE, Judged, beginning, best_threshold, counts
from merino_edge.jobs.templates import parsed, sentence, slots_of
from merino_runtime.errors import MerinoError
from merino_runtime.job import REFUSAL, constrained, open_job

pytestmark = pytest.mark.slow
HOUSE_DESIGN = Path(__file__).parents[2] / "examples" / "house" / "architecture.json"
THINGS = ("ball", "cup", "spoon", "red block", "blue block", "bottle", "book", "shoe", "key", "pen", "plate", "toy car")
ROBOT = {
    "job.toml": 'name = "robot"\n[data]\nsamples = 300\nturns = 2\ntest = 40\nheld_out = ["pick.lazy"]\n'
    '[decoder]\nbudget = {params_m = 0.1}\ncontext = 128\nvocab = 330\n[training]\nsteps = 8\nbatch = 4\n',
    "tools.json": json.dumps([
        {"type": "function", "function": {"name": "move", "parameters": {"type": "object", "required": ["to"],
         "properties": {"to": {"enum": ["left", "right", "forward"]}, "steps": {"type": "integer", "minimum": 1,
                        "maximum": 12}}}}},
        {"type": "function", "function": {"name": "pick", "parameters": {"type": "object", "required": ["thing"],
         "properties": {"thing": {"type": "string", "x-item": "thing"}}}}},
    ]),
    "items.jsonl": "".join(json.dumps({"kind": "thing", "name": name}) + "\n" for name in THINGS),
    "phrases/move.txt": "# moves\n(go|move) {to} [by] {steps} [steps]\nturn {to} [please]\n",
    "phrases/pick.txt": "(take|pick up|grab) the {thing}\n",
    "phrases/pick.lazy.txt": "{thing}\n",
    "refusals.txt": "(hello|hi) robot\nwhat time is it\n",
}  # fmt: skip


@pytest.fixture
def robot(tmp_path):
    for name, text in ROBOT.items():
        (tmp_path / "robot" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "robot" / name).write_text(text)
    return tmp_path / "robot"


def test_a_robot_is_made_in_one_command_goes_on_where_it_was_stopped_and_answers(robot, tmp_path, here):
    torch.set_num_threads(1)
    out = tmp_path / "out"
    code, printed, err = here("job", "make", robot, "-o", out)
    assert code == 0
    assert "step 7 of 7, package" in err and "is asked for first" in printed
    judged = json.loads((out / "evaluation.json").read_text())
    assert sum(judged["counts"]["all"].values()) == 20 and judged["held out"] in ([], ["pick.lazy"])
    kept = (out / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    (out / "evaluation.json").unlink()  # a run that was stopped before its last steps
    code, _, err = here("job", "make", robot, "-o", out)
    assert code == 0 and "training.json is there" in err
    assert json.loads((out / "evaluation.json").read_text()) == judged
    assert (out / "checkpoint" / "model.safetensors").stat().st_mtime_ns == kept

    job = open_job(str(out / "bundle"))
    with job.model:
        for words in ("grab the lamp", "turn left", "hello robot"):
            answer = job.answer({"thing": ["lamp", "Green Tray"]}, words)  # names that training never had
            assert answer.name in ("move", "pick", "refuse") and 0 < answer.probability <= 1
            assert answer.arguments.get("thing", "lamp") in ("lamp", "green tray")
            assert answer.sure == (answer.name == "refuse" or answer.probability >= job.threshold)
        assert job.answer({}, "grab the lamp").name != "pick"
    assert here("info", "--check", out / "bundle")[0] == 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"sentence": "hi", "items": {}, "call": {"name": "refuse", "arguments": {}}}) + "\n")
    assert here("job", "eval", out / "bundle", rows)[0] == 0
    rows.write_text('{"sentence": "hi"}\n')
    code, _, err = here("job", "eval", out / "bundle", rows)
    assert code == 1 and "line 1, must have `sentence`, `items` and `call`" in err
    (robot / "refusals.txt").write_text("good night\n")
    code, _, err = here("job", "make", robot, "-o", out)
    assert code == 1 and "was made of other files" in err


def test_a_job_begins_from_the_house_model_unless_it_asks_for_another_size(robot, tmp_path, here):
    from merino_edge.export.source import load_source
    from merino_edge.families.hugging_face import weights_hash

    def reason(decoder, begin="house"):
        (robot / "job.toml").write_text(f'name = "robot"\n{decoder}\n[training]\nbegin = "{begin}"\n')
        return beginning(read_job(robot))

    for decoder in ("", f'[decoder]\narchitecture = "{HOUSE_DESIGN}"\nvocab = 1536', '[decoder]\nprecision = "fp32"'):
        assert reason(decoder) == (HOUSE, "")
    for decoder, why in (
        ("budget = {decode_ms = 3}", "budget"), ("vocab = 512", "is 512, and house has 1536"),
        ("context = 128", "context"), (f'architecture = "{tmp_path / "other.json"}"', "is not that of house"),
    ):  # fmt: skip
        (tmp_path / "other.json").write_text(HOUSE_DESIGN.read_text().replace("2.5", "2"))
        folder, said = reason(f"[decoder]\n{decoder}")
        assert folder is None and why in said
    assert reason("", "")[0] is None
    with pytest.raises(MerinoError, match=r"begin = 'nowhere': .* Give `house`"):
        reason("", "nowhere")

    torch.set_num_threads(1)
    (robot / "job.toml").write_text(
        'name = "robot"\n[data]\nsamples = 60\ntest = 12\n[training]\nsteps = 1\nbatch = 2\n'
    )
    out = tmp_path / "out"
    code, _, err = here("job", "make", robot, "-o", out)
    assert code == 0 and "begins from the model" in err, err
    assert (out / "tokenizer.json").read_bytes() == (HOUSE / "tokenizer.json").read_bytes()
    record = json.loads((out / "checkpoint" / "training.json").read_text())
    assert record["weights_sha256"] == weights_hash(load_source(str(HOUSE)).model)
    assert load_source(str(out / "bundle")).arch == load_source(str(HOUSE)).arch


def test_a_sample_leaves_room_for_the_tokens_around_it():
    record = {"prompt": ["abc", "de"], "completion": ["f", "g"]}  # 5 and 4 characters with their ends
    for context, turns in ((11, 2), (10, 1), (7, 1), (6, None)):
        kept = fitted(record, len, context)
        assert kept is None if turns is None else len(kept["prompt"]) == turns


@pytest.mark.parametrize(("file", "text", "message"), [
    ("job.toml", 'name = "robot"\n[data]\nsize = 3\n', "job.toml: data.size"),
    ("job.toml", "name = ", "job.toml: "),
    ("tools.json", "[]", "tools.json is empty"),
    ("tools.json", '[{"name": "move"}]', "is no list of tools in OpenAI's form"),
    ("tools.json", ROBOT["tools.json"].replace('"x-item"', '"title"'), "thing of pick must have x-item"),
    ("items.jsonl", '{"kind": "thing"}\n', "line 1, must have `kind` and `name`"),
    ("items.jsonl", '{"kind": "thing", "name": "cup"}\n', "has 1 items of kind thing: give 10 or more"),
    ("phrases/move.txt", "go (left\n", "move.txt, line 1: the brackets"),
    ("phrases/move.txt", "go {to} {where}\n", "{where} is no argument of move"),
    ("phrases/move.txt", "go\n", "it lacks {to}, which move requires"),
    ("phrases/move.txt", "# none\n", "has no sentences for move"),
    ("phrases/fly.txt", "fly\n", "there is no tool fly in tools.json"),
    ("refusals.txt", "", "refusals.txt has no lines"),
    ("refusals.txt", "caf\udce9", "refusals.txt is not text: byte 3 is not UTF-8"),
    ("job.toml", '\ufeffname = "../x"', 'name is "../x"'), ("job.toml", "name = 5", "name is 5"),
    ("job.toml", 'name = "x"\ndecoder.precision = "int3"', "decoder.precision"),
    ("items.jsonl", '{"kind": "thing", "name": "cup", "aliases": "mug"}', "`aliases` must be a list of texts"),
    ("samples.py", "def", "samples.py cannot be run: SyntaxError"), ("samples.py", "", "has no samples, tests, judge"),
    ("phrases/move.txt", "(a|" * 3000, "nested too deeply"),
])  # fmt: skip
def test_what_is_wrong_in_a_folder_is_said_with_its_place(robot, file, text, message):
    (robot / file).write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(MerinoError) as refusal:
        read_job(robot)
    assert message in str(refusal.value)


def test_the_example_is_a_job_and_no_file_is_replaced(tmp_path):
    new_job(tmp_path / "kiosk")
    job = read_job(tmp_path / "kiosk")
    assert [tool["function"]["name"] for tool in job.tools] == ["order", "remove", "pay"] and job.refusals
    with pytest.raises(MerinoError, match="is not empty: choose another folder"):
        new_job(tmp_path / "kiosk")
    with pytest.raises(MerinoError, match="is no job: it has no job.toml"):
        read_job(tmp_path)


def test_samples_have_the_items_that_their_calls_name_and_the_test_has_others(robot):
    job = read_job(robot)
    trained, test = ([*samples(job, 200, 2, 0, test=each)] for each in (False, True))
    names = [{name for sample in made for name in sample.items["thing"]} for made in (trained, test)]
    assert not names[0] & names[1] and names[0] | names[1] == set(THINGS)
    assert names[1] == {item.name for item in part(job.items["thing"], True)}
    families = [Counter(turn.family for sample in made for turn in sample.turns) for made in (trained, test)]
    assert set(families[1]) - set(families[0]) == {"pick.lazy"}
    assert 0.15 < (families[0]["refusals"] + families[0]["absent"]) / 400 < 0.35
    for sample in trained:
        record = sample.record()
        assert record["prompt"][0].startswith("thing: ") and record["prompt"][1].startswith("> ")
        for turn in sample.turns:
            call = json.loads(turn.call)
            thing = call["arguments"].get("thing")
            assert thing is None or (thing in sample.items["thing"] and thing in turn.words)
            if turn.family == "absent":
                assert turn.call == REFUSAL and not any(turn.words.endswith(name) for name in sample.items["thing"])
    assert [*samples(job, 5, 2, 0)] == [*samples(job, 5, 2, 0)] != [*samples(job, 5, 2, 1)]


def test_templates_expand_to_all_of_their_sentences():
    template, rng = "(go|move) [now] {to}[ (fast;please)]", random.Random(0)
    made = {sentence(template, rng, {"to": "Left"})[0] for _ in range(500)}
    ends = ("", " fast please", " please fast")
    assert made == {f"{go} {now}left{end}" for go in ("go", "move") for now in ("", "now ") for end in ends}
    assert slots_of(parsed(template)) == {"to"}
    for odd in ("a (b", "a] b", "a {b", "(a))"):
        with pytest.raises(MerinoError, match="brackets"):
            parsed(odd)


def test_tools_without_their_items_are_left_out_of_the_constraint(robot):
    tools = read_job(robot).tools
    assert [tool["function"]["name"] for tool in constrained(tools, {})] == ["move", "refuse"]
    pick = constrained(tools, {"thing": ["cup"]})[1]["function"]
    assert pick["parameters"]["properties"] == {"thing": {"enum": ["cup"]}}


def test_the_threshold_weighs_wrong_calls_against_questions():
    judged = [Judged("a", probability > 0.3, True, probability) for probability in (0.1, 0.2, 0.4, 0.9)]
    assert best_threshold(judged, 20) == 0.4 and best_threshold(judged, 0.5) == 0.0
    assert counts([*judged, Judged("b", False, False, 0.9)], 0.15) == {
        "all": {"asked, wrong": 1, "wrong call": 1, "right": 2, "refused wrongly": 1},
        "a": {"asked, wrong": 1, "wrong call": 1, "right": 2}, "b": {"refused wrongly": 1},
    }  # fmt: skip
