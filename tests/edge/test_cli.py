"""The workstation's command line as scripts use it: fields of the JSON, exit codes, a mistake without a traceback.

In processes of its own where that is what is tested, forked from one that has loaded what commands import; else `here`.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from sample_records import record
from typer.main import get_command

from merino_bench.harness.render import as_json, render
from merino_edge.cli.app import app
from merino_edge.profiles.reading import profile_ids, profile_text

pytestmark = pytest.mark.slow


def run(*arguments, cwd=None, first=""):
    """(exit code, stdout, stderr) of `merino-edge`, in a process of its own. first: what that process runs before."""
    done = forked.run(arguments, first=first, cwd=cwd, env={**os.environ, "COLUMNS": "200"})
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_devices_json_lists_every_board_with_its_budget():
    code, out, _ = run("devices", "--json")
    assert code == 0
    boards = json.loads(out)
    assert [board["id"] for board in boards] == [*profile_ids(), "host"]
    assert [board["id"] for board in boards if "performance" not in board] == ["host"]  # not measured yet
    for board in boards:
        assert {"id", "name", "arch", "isa", "budget"} <= set(board)
        assert set(board["budget"]) == {"decode_ms", "memory_mb", "context"}


@pytest.fixture(scope="module")
def design_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("design") / "design.json"
    arguments = ["--board", "raspberry-pi-zero-2w", "--decode-ms", "4", "--vocab", "300", "--context", "64"]
    code, out, err = run("design", *arguments, "--json", "-o", path)
    assert code == 0, err
    assert json.loads(out) == json.loads(path.read_text())
    return path


def test_design_json_has_the_fields_of_the_contract(design_file):
    design = json.loads(design_file.read_text())
    assert {"schema", "device", "architecture", "precision", "budget", "predicted", "entropy", "solver"} <= set(design)
    constants = {"rope_theta", "rms_norm_eps", "width_change"}
    assert set(design["architecture"]) == {"blocks", "vocab", "head_size", "context"} | constants
    assert {"width", "ffn_ratio", "depth", "shared"} <= set(design["architecture"]["blocks"][0])
    predicted = {"decode_ms", "prefill_ms", "memory_mb", "flops_g", "params", "weight_bytes", "kv_bytes", "provenance"}
    assert set(design["predicted"]) == predicted | {"file_mb", "j_per_token", "decode_threads", "prefill_threads"} | {
        "decode_ms_interval", "prefill_ms_interval", "j_per_token_interval", "confidence"
    }
    assert set(design["solver"]) == {"name", "gap", "bound", "seconds", "seed", "members"}
    assert 0.9 * 4 < design["predicted"]["decode_ms_interval"][1] <= 4


@pytest.mark.usefixtures("quick_benchmarks")
@pytest.mark.parametrize("dialect", ["fused", pytest.param("portable", marks=pytest.mark.nightly)])
def test_a_design_is_exported_and_measured(design_file, dialect, here, tmp_path):
    bundle = tmp_path / "bundle"
    code, out, err = here("export", design_file, "--dialect", dialect, "-o", bundle)
    assert code == 0, err
    assert "random weights" in out and "raspberry-pi-zero-2w" in out
    saved = tmp_path / "records.json"
    code, out, err = here("bench", bundle, "-p", "16", "-n", "8", "-r", "2", "--format", "json", "-o", saved)
    assert code == 0, err
    records = json.loads(out)
    assert [record["test"] for record in records] == ["pp16", "tg8"]
    assert all(record["weights"] == "random" and record["tok_s"] > 0 for record in records)
    assert json.loads(saved.read_text()) == records


def test_an_architecture_alone_is_exported(design_file, here, tmp_path):
    path = tmp_path / "geometry.json"
    path.write_text(json.dumps(json.loads(design_file.read_text())["architecture"]))
    code, out, err = here("export", path, "--precision", "int8", "-o", tmp_path / "bundle", "--name", "mine")
    assert code == 0 and "bundle: mine, fused int8" in out, err
    assert re.search(r"\d+ quantized matrices, .* MB; error relative", out), out


def test_generate_streams_the_embedded_model_as_text_and_as_json():
    code, text, err = run("generate", "embedded", "Once upon a time", "-n", 12, "--temperature", 0)
    assert code == 0, err
    code, out, _ = run("generate", "embedded", "Once upon a time", "-n", 12, "--temperature", 0, "--json")
    *tokens, last = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(tokens) == 12
    assert all(set(token) == {"id", "text"} for token in tokens)
    assert "".join(token["text"] for token in tokens) == text.removesuffix("\n")
    figures = {"done", "tokens", "prefill_tokens", "prefill_ms", "decode_ms_p50", "tok_s", "peak_rss_mb"}
    assert set(last) == figures | {"shifts", "forced", "guessed", "stop_reason"}
    assert last["stop_reason"] == "length" and last["shifts"] == 0


MISTAKES = [
    (["devices", "raspberry-pi-9"], "raspberry-pi-5"),
    (["design", "--board", "raspberry-pi-4", "--decode-ms", "0.1"], "the smallest that any decoder needs"),
    (["design", "--board", "raspberry-pi-4", "--decode-ms", "20", "-o", "/proc/no/design.json"], "cannot write"),
    (["train", "nothing.json", "--data", "nothing.txt", "-o", "out"], "nothing.json"),
    (["export", "embedded", "--text", "/proc/self/comm", "--kv", "int8", "-o", "out"], "/proc/self/comm gives"),
    (["generate", "nothing", "Once"], "no such bundle"),
    (["generate", "embedded", ""], "empty"),
    (["generate", "embedded", "Once " * 600], "context"),
    (["bench", "embedded", "-p", "100000"], "context"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(words)[:40] for words, _ in MISTAKES])
def test_a_users_mistake_is_one_message_and_exit_1(arguments, message, here, tmp_path):
    code, out, err = here(*arguments, cwd=tmp_path)
    assert code == 1 and out == ""
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_refused_budget_names_options_that_exist(here):
    code, out, err = here("design", "--board", "raspberry-pi-4", "--memory-mb", "1")
    assert (code, out) == (1, "")
    other, options = re.search(r"or `(\w+)` with (.*)", err).groups()
    there = {option for parameter in get_command(app).commands[other].params for option in parameter.opts}
    named = set(re.findall(r"--[\w-]+", options))
    assert named == {"--vocab", "--context"} and named <= there


REFUSED_WITHOUT_TORCH = [
    (["export", "embedded", "--name", "../x", "-o", "out"], "--name '../x' is not allowed"),
    (["export", "embedded", "--precision", "fp16", "--board", "raspberry-pi-4", "-o", "out"], "fp16 is for GPUs"),
    (["export", "nothing", "-o", "out"], "'nothing' names no model: give"),
    (["export", ".", "-o", "out"], ". is no checkpoint: it has no config.json"),
    (["export", "opt-350m", "--set=weights=nothing", "-o", "out"], "nothing is no checkpoint: it has no config.json"),
    (["export", "embedded", "--dialect", "portabel", "-o", "out"], "--dialect portabel is not known: choose one of"),
    (["export", "embedded", "--precision", "int5", "-o", "out"], "--precision int5 is not known: choose one"),
    (["export", "embedded", "--text", "nope.txt", "-o", "out"], "--text nope.txt does not exist"),
    (["export", "threads.json", "-o", "out"], "threads.json is not a design.json: predicted.prefill_threads is "),
    (["export", "broken.json", "-o", "out"], "broken.json is not JSON"),
    (["bench", "embedded", "--baseline", "nope"], "--baseline nope cannot be measured: no such bundle: 'nope'"),
    (["bench", "embedded", "--baseline", "opt-350m:int2"], "opt-350m:int2 is not known: choose one"),
    (["generate", "embedded", "Once", "--ssh", "h:99999"], "no host has a port 99999, allowed: 1 to 65535"),
    (["design", "--board", "raspberry-pi-4", "--decode-ms", "inf"], "Give a number, or leave the option out"),
    (["bench", "embedded", "--baseline", "opt-350m", "-r", "0"], "repetitions is 0, allowed: 1 or more"),
    (["bench", "embedded", "--peers", "all,x.gguf"], "--peers all,x.gguf must name one file"),
    (["export", "opt-350m", "--context", "9000", "-o", "out"], "--context 9000 is not allowed: choose 8 to 2048"),
    (["generate", "embedded", "Once", "-n", "0"], "0 new tokens were requested, allowed: an integer, 1 or more"),
    (["generate", "embedded", "Once", "--set=top_p=3"], "top_p is 3.0, allowed: above 0, up to 1"),
    (["chat", "embedded", "-n", "0"], "0 new tokens were requested, allowed: an integer, 1 or more"),
    (["chat", "embedded", "--set=seed=-1", "--ssh", "nowhere"], "seed is -1, allowed: an integer, 0"),
    (["keygen", "-o", ""], "-o '.' names a folder or nothing: give a name, such as -o fleet"),
]


# Each in a process of its own, forked from one in which each command was refused once: it has loaded what that needs.
WITHOUT_TORCH = """
import json, os, sys
sys.modules["torch"] = sys.modules["onnxruntime"] = None
from merino_edge.cli.app import main

def run(words):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as ended:
        return ended.code

refused = json.loads(sys.argv[1])
for words in {each[0]: each for each in refused}.values():
    run(words)
for number, words in enumerate(refused):
    if os.fork() == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"../streams/{number}.{name}", os.O_CREAT | os.O_WRONLY), stream)
        code = run(words)
        sys.stdout.flush()
        os._exit(code)  # at once: what is loaded takes half a second to be taken apart
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_typo_is_refused_where_torch_cannot_be_loaded(design_file, tmp_path):
    (folder := tmp_path / "here").mkdir()
    (streams := tmp_path / "streams").mkdir()
    design = json.loads(design_file.read_text())
    (folder / "int4.json").write_text(json.dumps({**design, "precision": "int4"}))
    (folder / "threads.json").write_text(
        json.dumps({**design, "predicted": {**design["predicted"], "prefill_threads": -1}})
    )
    (folder / "broken.json").write_text("{")
    before = sorted(folder.iterdir())
    words = json.dumps([words for words, _ in REFUSED_WITHOUT_TORCH])
    done = subprocess.run(
        [sys.executable, "-u", "-c", WITHOUT_TORCH, words], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.stdout.split() == ["1"] * len(REFUSED_WITHOUT_TORCH), done
    for number, (arguments, message) in enumerate(REFUSED_WITHOUT_TORCH):
        printed = (streams / f"{number}.err").read_text()
        assert (streams / f"{number}.out").read_text() == "", arguments
        assert message in printed and printed.count("\n") == 1, (arguments, printed)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "arguments", [["--help"], ["devices"], ["devices", "--json"], ["devices", "raspberry-pi-4"], ["design", "--help"]]
)
def test_what_computes_nothing_loads_nothing_that_computes(arguments):
    """So that it answers at once."""
    code = (
        "import sys; from merino_edge.cli.app import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "loaded = {'numpy', 'scipy', 'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.mark.parametrize("arguments", [["fly"], ["design"], ["design", "--board", "host", "--speed", "9"], ["bench"]])
def test_wrong_usage_is_exit_2(arguments, here):
    assert here(*arguments)[0] == 2


def test_training_needs_no_more_than_a_text(design_file, here, tmp_path):
    text = Path(tmp_path, "text.txt")
    lines = [f"The miller counts {count} sacks, and the baker buys {count + 1}.\n" for count in range(400)]
    text.write_text("<|endoftext|>".join(lines))
    out = tmp_path / "checkpoint"
    arguments = ["train", design_file, "--data", text, "--steps", "3", "--batch", "2", "-o", out]
    code, printed, err = here(*arguments)
    assert code == 0, err
    assert "held-out loss" in printed and "perplexity" in printed
    code, printed, err = here(*arguments)
    assert code == 0 and "this run is finished" in err
    code, printed, err = here("export", out, "-o", tmp_path / "bundle")
    assert code == 0 and "trained weights" in printed and "raspberry-pi-zero-2w-design, fused" in printed, err


def test_a_small_text_and_a_training_time_are_budgets_of_a_design_that_train_keeps(here, tmp_path):
    text, design = tmp_path / "talk.jsonl", tmp_path / "design.json"
    turns = [
        [{"role": "user", "content": f"How many sacks on day {day}?"}, {"role": "assistant", "content": f"{day * 7}."}]
        for day in range(3000)
    ]
    text.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    request = ("design", "--board", "raspberry-pi-4", "--data", text, "--context", "64", "--prompt", "32")
    code, _, err = here(*request, "--vocab", "50257")
    assert code == 1 and "a vocabulary of 50257 was requested, and the text" in err and "entries at most" in err
    code, out, err = here(*request, "--budget", "train-hours=0.0004", "-o", design)
    assert code == 0 and "in 0.0004 h here" in out, err
    made = json.loads(design.read_text())
    assert made["training"]["hours"] == 0.0004 and max(made["considered"]["vocab"]) < 8192
    code, out, err = here("train", design, "--data", text, "--batch", "8", "-o", tmp_path / "checkpoint")
    assert code == 0 and "steps for the design's 0.0004 hours of training" in err, err
    assert "with the tokens of ChatML" in err and "held out: the last" in err and "passes over the data" in err
    assert "nassistant' -> " in err  # the end of a prompt and an answer, at each evaluation
    steps = int(err.split(" steps for the design's")[0].split()[-1].replace(",", ""))
    assert json.loads((tmp_path / "checkpoint" / "training.json").read_text())["steps_taken"] == steps


def test_design_takes_every_option_of_the_search(here, tmp_path):
    arguments = [
        "--board", "raspberry-pi-zero-2w", "--vocab", "300,1000", "--precision", "fp32,int8", "--context", "64",
        "--budget", "file-mb=3", "--budget", "j-per-token=0.02", "--kv", "fp32,int8", "--budget", "tokens=1e7",
    ]  # fmt: skip
    path = tmp_path / "design.json"
    code, out, err = here("design", *arguments, "-o", path)
    assert code == 0, err
    design = json.loads(path.read_text())
    assert design["architecture"]["vocab"] in (300, 1000) and design["precision"] in ("fp32", "int8")
    assert design["considered"] == {"vocab": [300, 1000], "precision": ["fp32", "int8"], "kv": [None, "int8"]}
    assert design["predicted"]["file_mb"] <= 3 and design["predicted"]["j_per_token"] <= 0.02
    assert design["training"]["tokens"] == 1e7 and design["predicted"]["params"] <= design["training"]["most_weights"]
    assert design["scoring"]["constants"]["alpha"] == 0.016
    assert "open: vocabulary 300, 1000; format fp32, int8; KV cache float, int8" in out and "bundle's folder" in out
    assert "10 M tokens train at most 1.86 M parameters well" in out


def test_design_takes_the_papers_score_with_budgets(here):
    words = ("--board", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64", "--score", "merino")
    code, out, err = here("design", *words, "--decode-ms", "2", "--json")
    assert code == 0, err
    design = json.loads(out)
    assert design["scoring"] == {
        "name": "merino", "attention_weight": 0.6, "ffn_weight": 0.4, "eps": 1, "beta": 1 / 16, "shared_discount": 1e-4,
    }  # fmt: skip
    assert design["solver"]["name"] == "integer program" and 0 <= design["solver"]["gap"] < 1e-4
    assert len(design["architecture"]["blocks"]) == 4 and design["predicted"]["decode_ms"] <= 2


@pytest.mark.parametrize("name", sorted(get_command(app).commands))
def test_help_breaks_no_word_at_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (get_command(app), get_command(app).commands[name]):
        # The board's parser ends the process after its help.
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            words.main(["--help"], standalone_mode=False, prog_name="merino-edge", terminal_width=80)
        lines = shown.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        options = [name for one in words.params for name in one.opts if name.startswith("-")]
        expected = options + " ".join(getattr(one, "help", None) or "" for one in words.params).split()
        whole = set(" ".join(lines).split())
        assert [word for word in expected if word not in whole] == [] and "\u2026" not in shown.getvalue()


def test_names_in_files_steer_no_terminal_and_turn_no_line(here, tmp_path):
    name = "model \u202egnp\u2066 \x1b[2J"
    rows = [record(bundle=name), record(300.0, bundle=name, test="pp64")]
    rows = [{"ratio_turns": None, **row} for row in rows]
    (tmp_path / "r.json").write_text(as_json(rows))
    (tmp_path / "p.toml").write_text(profile_text("raspberry-pi-4").replace('name = "', 'name = "\\u202e\\u001b', 1))
    for words in (
        ["compare", "r.json", "r.json"], ["report", "r.json"], ["report", "r.json", "-o", "out.html"],
        ["devices", "p.toml"],
        ["design", "--board", "p.toml", "--vocab", "300", "--context", "64"],
    ):  # fmt: skip
        code, out, err = here(*words, cwd=tmp_path)
        assert code == 0, err
        page = (tmp_path / "out.html").read_text() if "out.html" in words else out
        assert "u202e" in page
        assert not set(out + err + page) & set("\x1b\u202e\u2066")
    assert not set(render(rows, "md")) & set("\x1b\u202e\u2066")


def test_a_preset_is_the_papers_flops_and_nothing_else(here):
    code, out, err = here("design", "--board", "raspberry-pi-zero-2w", "--score", "merino-52m", "--json")
    assert code == 0, err
    assert json.loads(out)["budget"] == {"flops_g": 60}
    code, _, err = here("design", "--board", "host", "--score", "merino-52m", "--decode-ms", "5")
    assert code == 1 and "--score merino-52m has a budget of its own" in err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--score", "best"), 1, "--score best is not known: choose one of measured, merino"),
        (("--budget", "kv-mb=3"), 2, "give NAME=VALUE"), (("--budget", "file-mb"), 2, "give NAME=VALUE"),
        (("--score", "merino", "--budget", "tokens=1e9"), 1, "leave --budget tokens and --data out"),
        (("--score", "merino", "--vocab", "300,400"), 1, "--vocab is a list"),
        (("--budget", "tokens=0"), 1, "--budget tokens=0 is not allowed"),
        (("--budget", "tokens=-5"), 1, "--budget tokens=-5 is not allowed"),
        (("--budget", "tokens=1e9", "--data", "text.txt"), 1, "give one of them"),
        (("--data", "missing.txt"), 1, "--data missing.txt does not exist"),
        (("--budget", "train-hours=1"), 1, "--budget train-hours goes with a text"),
        (("--budget", "tokens=1e9", "--budget", "train-hours=0"), 1, "train-hours=0 is not allowed"),
        (("--vocab", "1000000", "--context", "131072", "--precision", "fp32", "--kv", "fp32"), 1,
         "the board's own --decode-ms 50 is below"),
        (("--vocab", "256,50257"), 1, "--vocab 256 is not allowed: choose 257"),
        (("--kv", "int2"), 1, "--kv int2 is not known"),
        (("--vocab", "many"), 2, "several with commas"),
        (("--precision", "fp32,fp8"), 1, "--precision fp8"),
        (("--vocab", ",".join(map(str, range(300, 400)))), 1, "give at most"),
    ],
)
def test_a_design_that_cannot_be_is_refused(arguments, exit_code, message, here):
    code, out, err = here("design", "--board", "raspberry-pi-4", *arguments)
    assert (code, out) == (exit_code, "")
    assert message in " ".join(err.replace("│", " ").split())
