"""Every option of every command reaches what it names: one that is accepted and ignored fails here.

The workstation's commands are run up to the function that does the work, once as they are and once with each option at
another value: what that function gets, or what is refused, must be different. Options are read off the commands, so a
new one is driven too. What is not used before the work is done is listed with the test that drives it. ruff (ARG) finds
parameters that a function does not read; so where a call got the value, it is used.
"""

import enum
import inspect
import re
import typing
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.main import get_command

from merino_bench.__main__ import VERBS as BENCH_VERBS
from merino_edge.cli import board_verbs
from merino_edge.cli.app import app
from merino_runtime.__main__ import VERBS as RUNTIME_VERBS
from merino_runtime.__main__ import _parser
from merino_runtime.delivery.verbs import VERBS as DELIVERY_VERBS
from merino_runtime.errors import MerinoError

WRONG_USAGE = typer.BadParameter.__mro__[1]  # whichever click typer brings
COMMANDS = {
    " ".join([name, *words]): inner
    for name, command in get_command(app).commands.items()
    for words, inner in ([((word,), one) for word, one in getattr(command, "commands", {}).items()] or [((), command)])
}
PI, SSH = ["--board", "raspberry-pi-4"], ["--ssh", "nowhere"]
OVER_SSH = "merino_edge.cli.over_ssh."
# (command, what it is called with, the functions that do the work)
CALLS = [
    ("devices", ["jetson-nano"], ["merino_edge.cli.tables.device_table"]),
    ("deploy", ["embedded", *SSH, *PI], ["merino_edge.cli.deploy.target_of"]),
    ("recommend", PI, ["merino_edge.design.recommend.recommend", OVER_SSH + "on_board"]),
    ("design", PI, ["merino_edge.design.designer.design"]),
    ("calibrate", [*PI, "--probe", "p.json", "-o", "p.toml"], ["merino_edge.calibration.command.recalibrate"]),
    ("calibrate", [*PI, *SSH, "-o", "p.toml"], ["merino_edge.calibration.command.recalibrate"]),
    ("train", ["arch.json", "--data", "text.txt", "-o", "out", "--set", "bf16=false"],
     ["merino_edge.training.train.train"]),
    ("export", ["arch.json", "-o", "out"], ["merino_edge.export.export.export"]),
    ("generate", ["embedded", "Once"], ["merino_runtime.commands.open_bundle", OVER_SSH + "generate_there"]),
    ("generate", ["embedded", "Once", *SSH], [OVER_SSH + "generate_there"]),
    ("chat", ["embedded"], ["merino_runtime.commands.open_bundle", OVER_SSH + "chat_there"]),
    ("chat", ["embedded", *SSH], [OVER_SSH + "chat_there"]),
    ("serve", ["embedded"], ["merino_bench.__main__.run_serve"]),
    ("bench", ["embedded"], ["merino_edge.benchmarking.run.run_benchmark", OVER_SSH + "bench_there"]),
    ("bench", ["embedded", *SSH], [OVER_SSH + "bench_there"]),
    ("flash", ["f.merino", *SSH], ["merino_edge.cli.deliver.flash_boards"]),
    ("flash", ["f.merino", "--image", "i.img"], ["merino_edge.delivery.image.flash_image"]),
    ("check", ["embedded", "--tensorrt", "8.2"], ["merino_edge.bundles.tensorrt.check_bundle"]),
    ("eval", ["embedded", "--tasks", "piqa"],
     ["merino_edge.storage.atomic.check_file", "merino_edge.evaluation.run.evaluate",
      "merino_edge.evaluation.perplexity.evaluate_text"]),
    ("compare", ["r.json", "r.json"], ["merino_edge.records.compare.compare_files"]),
    ("report", ["r.json"],
     ["merino_edge.storage.atomic.check_file", "merino_edge.records.reading.read_all"]),
    ("keygen", ["-o", "name"], ["merino_edge.delivery.keys.make_key"]),
    ("pack", ["embedded", "-o", "f.merino"], ["merino_edge.delivery.pack.pack"]),
    ("info", ["embedded"], ["merino_runtime.commands.write_out", "merino_runtime.commands.write_lines"]),
    ("house", ["it is dark", "--devices", "house.json"], ["merino_edge.cli.house.model_folder"]),
    ("job new", ["folder"], ["merino_edge.jobs.folder.new_job"]),
    ("job make", ["folder", "-o", "out"], ["merino_edge.jobs.folder.read_job"]),
    ("job eval", ["folder", "text.txt"], ["merino_edge.text.documents.read_json_lines"]),
    ("demo", [], ["merino_edge.cli.demo.run_demo"]),
]  # fmt: skip
VALUES = {
    ("recommend", "--budget"): "file-mb=9", ("design", "--budget"): "tokens=1e6", ("train", "--config"): "c.toml",
    "--backend": "tensorrt",
    "--ssh": "elsewhere", "--kv": "int8", "--vocab": "512",
    "--precision": "int8", "--score": "merino", "-p": "8", "-d": "8",
    "--dialect": "portable", "--outputs": "embeddings", "--fail-if-slower": "5%", "--tensorrt": "10.3",
    "--baseline": "opt-350m", ("bench", "-t"): "1", "--peers": "all", "--board": "raspberry-pi-5", "-o": "other",
    "--data": "more.txt", "--held-out": "text.txt", "--tokenizer": "text.txt",
    ("train", "--set"): "weight_decay=0.3", "--set": "prefill_threads=3",
    "--text": "text.txt", "--weights": "folder", "--context": "64", "--prompt": "32",
    ("bench", "-n"): "8",
    ("report", "-o"): "out.html",
}  # fmt: skip
# Used once the work is done: by whose test each is driven.
DRIVEN_BY = {
    **{("deploy", option): "test_deploy.py"
       for option in ("--precision", "--context", "--sign", "--yes", "--chat", "--serve")},
    ("recommend", "--json"): "test_recommend.py",
    ("design", "--json"): "test_cli.py", ("design", "-o"): "test_cli.py",
    ("check", "--json"): "test_tensorrt_check.py", ("compare", "--json"): "test_records.py",
    ("compare", "--fail-if-slower"): "test_records.py", ("pack", "--json"): "test_pack.py",
    ("flash", "--json"): "test_delivery_ssh_flash.py", ("report", "--board"): "test_report.py",
    ("job make", "-o"): "test_jobs.py",
    ("eval", "--json"): "test_evaluation.py",
}  # fmt: skip


class Reached(Exception):  # noqa: N818
    """The function that does the work was called."""


@pytest.fixture
def outcome(monkeypatch, tmp_path):
    """A function: (command, words, functions) -> what one of the functions got, or the refusal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("The miller counts sacks.\n" * 400)
    (tmp_path / "more.txt").write_text("The baker buys sacks.\n" * 400)
    (tmp_path / "c.toml").write_text("steps = 7\n[set]\nweight_decay = 0.2\n")
    (tmp_path / "house.json").write_text('{"devices": [["lamp", "light", "hall"]]}')
    (tmp_path / "arch.json").write_text(
        '{"blocks": [{"width": 32, "ffn_ratio": 1.0, "depth": 1, "shared": false}], "vocab": 300, "head_size": 32,'
        ' "context": 64}'
    )

    def run(command, words, functions):
        def reached(name):
            def record(*arguments, **options):
                raise Reached(f"{name} {arguments!r} {options!r}")

            return record

        for path in functions:
            monkeypatch.setattr(path, reached(path))
        try:
            COMMANDS[command].main(words, standalone_mode=False)
        except Reached as reason:
            return re.sub(r" at 0x[0-9a-f]+", "", str(reason))  # addresses of functions
        except (MerinoError, WRONG_USAGE) as refused:
            return f"refused: {refused}"
        return "ended"

    return run


def other_value(command, option):
    """The words that give an option another value than its default, of the type that the command's signature has."""
    name = option.opts[0]
    if command in board_verbs.VERBS:
        action = option.action
        if action.nargs == 0:
            return [name]
        given = VALUES.get((command, name), VALUES.get(name))
        given = given or next((one for one in action.choices or () if one != action.default), None)
        return [name, given or {int: "3", float: "0.5"}.get(action.type, "x")]
    annotation = inspect.signature(COMMANDS[command].callback).parameters[option.name].annotation
    parts = (annotation, *typing.get_args(annotation), *typing.get_args(typing.get_args(annotation)[0]))
    types = [one for one in parts if isinstance(one, type)]
    if bool in types:
        return [name]
    choices = [str(each.value) for one in types if issubclass(one, enum.Enum) for each in one]
    choices += [each for one in parts if typing.get_origin(one) is typing.Literal for each in typing.get_args(one)]
    usual = str(getattr(option.default, "value", option.default))
    given = VALUES.get((command, name), VALUES.get(name)) or next((each for each in choices if each != usual), None)
    return [name, given or ("3" if int in types else "0.5" if float in types else "x")]


class BoardOption(NamedTuple):
    opts: list
    action: object


def options_of(command):
    if command in board_verbs.VERBS:
        actions = board_verbs.parser_of(board_verbs.VERBS[command])._actions
        return [BoardOption(one.option_strings, one) for one in actions if one.option_strings and one.dest != "help"]
    return [one for one in COMMANDS[command].params if one.param_type_name == "option" and one.name != "help"]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "words", "functions"), CALLS, ids=[f"{call[0]} {call[1][-2:]}" for call in CALLS])
def test_each_option_of_the_workstation_changes_what_is_done(command, words, functions, outcome):
    usual = outcome(command, words, functions)
    assert usual.split(" ")[0] in functions, usual
    ignored = []
    for option in options_of(command):
        if (command, option.opts[0]) in DRIVEN_BY:
            continue
        if outcome(command, [*words, *other_value(command, option)], functions) == usual:
            ignored.append(option.opts[0])
    assert ignored == []


def test_no_command_and_no_exception_is_left_out():
    assert {call[0] for call in CALLS} == set(COMMANDS)
    known = {(command, option.opts[0]) for command in COMMANDS for option in options_of(command)}
    assert set(DRIVEN_BY) <= known
    for (command, option), file in DRIVEN_BY.items():
        text = (Path(__file__).parent / file).read_text("utf-8")
        assert re.search(rf'["\' ]{option}["\' ,\]]', text) and command.split()[-1] in text, (command, option, file)


VERBS = [*RUNTIME_VERBS, *BENCH_VERBS, *DELIVERY_VERBS]


def read_by(function, seen=()):
    """Names of the parsed arguments that a function, and those which it gives all of them, read."""
    source = inspect.getsource(function)
    result = set(re.findall(r"\barguments\.(\w+)", source))
    for name in re.findall(r"(\w+)\(arguments[,)]", source):
        inner = function.__globals__.get(name)
        if inner is not None and name not in seen:
            result |= read_by(inner, (*seen, name))
    return result


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_each_option_of_the_board_is_read_by_its_verb(verb):
    (subparsers,) = (action for action in _parser(VERBS)._actions if hasattr(action, "choices") and action.choices)
    accepted = {action.dest for action in subparsers.choices[verb.name]._actions} - {"help"}
    assert accepted - read_by(verb.run) == set()


@pytest.mark.parametrize("command", ["generate", "chat", "bench"])
def test_what_goes_to_a_board_is_what_its_command_line_takes(command, outcome, monkeypatch):
    """Each option at another value, as the board's parser reads it."""
    got = []
    monkeypatch.setattr(OVER_SSH + f"{command}_there", lambda *arguments, **_: got.append(arguments) or 0)
    words = {"generate": ["embedded", "Once"], "chat": ["embedded"], "bench": ["embedded"]}[command]
    here = {"--cache", "--json-schema", "--tools", "--peers", "--peers-file", "--baseline",
            "--ssh", "--root", "--json", "--format", "-o"}  # fmt: skip
    options = [each for each in options_of(command) if each.opts[0] not in here]
    given = [word for option in options for word in other_value(command, option)]
    assert outcome(command, [*words, *SSH, *given], []) == "ended"
    sent = next(one for one in got[0] if isinstance(one, list) and len(one) > 1)
    parser = _parser(VERBS)
    usual = vars(parser.parse_args([command, *words]))
    read = vars(parser.parse_args([command, *words, *sent]))
    changed = {name for name in usual if read[name] != usual[name]}
    assert len(changed) == len(options) > 3, (changed, sent)


@pytest.mark.parametrize("command", board_verbs.VERBS)
def test_a_shell_completes_the_options_of_the_boards_commands_too(command):
    context = COMMANDS[command].make_context(command, [])
    completed = {item.value for item in COMMANDS[command].shell_complete(context, "-")}
    assert {name for option in options_of(command) for name in option.opts} <= completed


MOST = 15  # options of a command


def test_no_command_has_more_options_than_a_reader_takes_in():
    counts = {command: len(options_of(command)) for command in COMMANDS}
    assert max(counts.values()) <= MOST, counts
