"""The board's command line as a process: exit codes, what goes to which stream, no traceback ever."""
import json
import os
import shutil
import signal
import subprocess
import sys
import zipapp

import pytest
from processes import on_a_terminal

import merino_runtime
from merino_runtime.io.streams import visible_text

pytestmark = pytest.mark.slow

# Of the package, wherever it was imported from: the process must run the same one.
ROOT = os.path.dirname(os.path.dirname(merino_runtime.__file__))
CALL = [sys.executable, "-m", "merino_runtime"]


def run(*arguments, call=CALL, stdout=subprocess.PIPE, cwd=None, **environment):
    process = subprocess.Popen([*call, *arguments], stdout=stdout, stderr=subprocess.PIPE, cwd=cwd,
                               env=dict(os.environ, PYTHONPATH=ROOT, **environment))
    out, err = process.communicate()
    err = err.decode("utf-8", "replace")
    assert "Traceback" not in err, err
    return process.returncode, (out or b"").decode("utf-8"), err


@pytest.fixture
def folder(bundle_dirs):
    return str(bundle_dirs["portable"])


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def test_generate_writes_text_to_stdout_and_figures_to_stderr(folder):
    code, out, err = run("generate", folder, "the", "-n", "5", "--set=seed=1", "--set=ignore_eos=true")
    assert code == 0 and out.endswith("\n")
    assert "5 tokens" in err and "tok/s" in err and "peak RSS" in err and err.count("\n") == 1
    assert run("generate", folder, "the", "-n", "5", "--set=seed=1", "--set=ignore_eos=true")[1] == out


def test_generate_json_is_a_line_per_token_and_the_figures(folder):
    arguments = ("generate", folder, "the", "-n", "6", "--temperature", "0", "--set=ignore_eos=true")
    code, out, _ = run(*arguments, "--json")
    *tokens, last = lines(out)
    assert code == 0 and len(tokens) == 6 and all(set(token) == {"id", "text"} for token in tokens)
    assert set(last) == {"done", "tokens", "prefill_tokens", "prefill_ms", "decode_ms_p50", "tok_s",
                         "peak_rss_mb", "stop_reason", "shifts", "forced", "guessed"}
    assert last["done"] is True and last["tokens"] == 6 and last["stop_reason"] == "length"
    assert "".join(token["text"] for token in tokens) + "\n" == run(*arguments)[1]


GREEDY = ("-n", "6", "--temperature", "0", "--set=ignore_eos=true")


def piped(text, *arguments, **environment):
    """(exit code, stdout, stderr) with the bytes `text` on stdin."""
    process = subprocess.Popen([*CALL, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=ROOT, **environment))
    out, err = process.communicate(text)
    assert b"Traceback" not in err, err
    return process.returncode, out.decode("utf-8"), err.decode("utf-8")


@pytest.mark.parametrize("text, same_as, given", [
    ("the river", "the river", []), ("the river\r\n", "the river", ["-"]), ("the\n\n", "the\n", []),
    ("naïve €\n", "naïve €", ["-"])])
def test_a_prompt_on_stdin_is_one_on_the_command_line(folder, text, same_as, given):
    code, out, err = piped(text.encode("utf-8"), "generate", folder, *given, *GREEDY, LC_ALL="C", PYTHONUTF8="0",
                           PYTHONCOERCECLOCALE="0")
    assert code == 0, err
    assert out == run("generate", folder, same_as, *GREEDY, LC_ALL="C.UTF-8")[1]


@pytest.mark.parametrize("given", [["-"], []])
@pytest.mark.parametrize("text, expected", [(b"", "stdin is empty"), (b"\n", "stdin is empty"), (b"a\xff", "(byte 1)"),
                                        pytest.param(b"a" * 3000000, "longer than 1,048,576 bytes", id="3 MB")])
def test_stdin_without_a_prompt_is_one_line_and_exit_1(folder, given, text, expected):
    code, out, err = piped(text, "generate", folder, *given)
    assert code == 1 and out == "" and err.startswith("merino: the prompt on stdin is ") and err.count("\n") == 1
    assert expected in err


def test_on_a_terminal_a_forgotten_prompt_is_wrong_usage_and_a_dash_reads_what_is_typed(folder):
    code, shown = on_a_terminal([*CALL, "generate", folder], PYTHONPATH=ROOT)
    assert code == 2 and "required: PROMPT" in shown
    code, shown = on_a_terminal([*CALL, "generate", folder, "-", *GREEDY], typed=b"the river\n\x04", PYTHONPATH=ROOT)
    assert code == 0 and "ctrl-D" in shown
    assert visible_text(run("generate", folder, "the river", *GREEDY)[1].strip()) in shown


@pytest.mark.parametrize("arguments, message", [
    (["-n", "0"], "0 new tokens"), (["--set=top_p=7", "--set=min_p=-1"], "top_p is 7.0"),
    (["--set=top-p=1"], "--set top-p=1 is not known: give NAME=VALUE, with one of adapter, backend"),
    (["--set=top_k=1.5"], "top_k is '1.5', allowed: an integer"), (["--set=lookup=yes"], "allowed: true or false"),
    (["--stop", ""], "stop string"), (["--set=seed=-1"], "seed is -1"), (["--set=threads=0"], "threads is 0"),
    (["--set=prefill_threads=0"], "prefill_threads is 0"), (["--set=threads=100000"], "100000, allowed: 1 to"),
    (["--temperature", "nan"], "temperature")])
def test_a_request_that_cannot_be_met_is_one_line_and_exit_1(folder, arguments, message):
    code, out, err = run("generate", folder, "the", *arguments)
    assert code == 1 and out == "" and err.startswith("merino: ") and message in err


def test_overflow_is_the_users_choice(folder):
    arguments = ("generate", folder, "the", "-n", "150", "--temperature", "0", "--set=ignore_eos=true", "--json")
    context = json.loads(run("info", folder, "--json")[1])["context"]
    assert lines(run(*arguments)[1])[-1]["stop_reason"] == "context"
    code, out, err = run(*arguments, "--set=overflow=error")
    assert code == 1 and out == "" and "150 new tokens" in err and f"the context is {context}" in err
    code, out, err = run(*arguments, "--set=overflow=shift", "--set=threads=1", "--set=prefill_threads=2")
    *tokens, last = lines(out)
    assert code == 0 and len(tokens) == 150 and last["stop_reason"] == "length" and last["shifts"] > 1
    assert f"older half of the context was dropped {last['shifts']} times" in err
    code, out, err = run("generate", folder, "x" * 500, "-n", "3", "--set=overflow=shift", "--set=ignore_eos=true",
                         "--json")
    assert code == 0 and len(lines(out)) == 4
    assert err.startswith("merino: note: the prompt has") and "are left out" in err


@pytest.mark.parametrize("arguments", [[], ["dance"], ["generate"], ["generate", ".", "x", "-n", "many"],
                                       ["info", ".", "--color"]])
def test_wrong_usage_is_exit_2(arguments):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "usage: merino" in err


def test_help_and_version_are_exit_0():
    code, out, _ = run("--help")
    assert code == 0 and all(verb in out for verb in ("generate", "info", "selftest"))
    assert run("--version")[:2] == (0, "merino " + merino_runtime.__version__ + "\n")


def test_info_and_selftest_in_the_bundles_own_folder(folder):
    code, out, _ = run("info", ".", "--json", cwd=folder)
    described = json.loads(out)
    assert code == 0 and described["dialect"] == "portable" and described["board"]["pointer_bits"] == 64
    code, out, _ = run("info", ".", cwd=folder)
    assert code == 0 and described["name"] in out
    for words in (["info", "--check"], ["selftest"]):
        code, out, _ = run(*words, ".", cwd=folder)
        assert code == 0 and out.startswith("ok: ")


@pytest.fixture
def copy(folder, tmp_path):
    target = str(tmp_path / "copy")
    shutil.copytree(folder, target)
    return target


def test_damage_is_found_by_every_verb_that_runs_the_model(copy):
    path = os.path.join(copy, "model.onnx.data")
    with open(path, "rb") as file:
        data = bytearray(file.read())
    data[len(data) // 2] ^= 0x40
    with open(path, "wb") as file:
        file.write(bytes(data))
    for verb in (["info", "--check", copy], ["selftest", copy], ["generate", copy, "x"]):
        code, out, err = run(*verb)
        assert code == 1 and out == "" and "model.onnx.data has sha256" in err


def test_a_failed_selftest_says_where_and_is_exit_1(copy):
    path = os.path.join(copy, "bundle.json")
    with open(path) as file:
        described = json.load(file)
    ids = described["golden"]["greedy_ids"]
    right, ids[1] = ids[1], (ids[1] + 1) % described["vocab"]
    with open(path, "w") as file:
        json.dump(described, file)
    code, out, err = run("selftest", copy)
    assert code == 1 and out == "" and "position 1" in err
    assert f"{ids[1]} was expected and {right} came out" in err


@pytest.fixture
def unknown_here(copy):
    """A bundle whose graph has an operator that the library lacks."""
    path = os.path.join(copy, "bundle.json")
    with open(path) as file:
        described = json.load(file)
    described["kernels"] = ["MatMul9"]
    with open(path, "w") as file:
        json.dump(described, file)
    return copy


@pytest.mark.parametrize("verb", [["generate", "the", "-n", "2"], ["selftest"]])
def test_an_operator_that_the_library_lacks_is_refused_before_numpy_is_imported(unknown_here, verb):
    verb = [verb[0], unknown_here] + verb[1:]
    blocked = ("import sys; sys.modules.update(numpy=None, onnxruntime=None, tokenizers=None)\n"
               "from merino_runtime.__main__ import main; sys.exit(main(sys.argv[1:]))")
    code, out, err = run(*verb, call=[sys.executable, "-c", blocked])
    assert code == 1 and out == "" and "lacks MatMul9" in err and "Update merino-runtime" in err


def test_a_cache_that_cannot_be_written_is_refused_before_the_model_is_loaded(folder, tmp_path):
    blocked = ("import sys; sys.modules.update(numpy=None, onnxruntime=None, tokenizers=None)\n"
               "from merino_runtime.__main__ import main; sys.exit(main(sys.argv[1:]))")
    path = str(tmp_path / "missing" / "cache")
    code, out, err = run("generate", folder, "the", "--cache", path, call=[sys.executable, "-c", blocked])
    assert code == 1 and out == ""
    assert err == f"merino: cannot write {path}: No such file or directory. Make the folder, or name another path.\n"


INTERRUPTED = """
import sys
from merino_runtime.__main__ import Verb, main
def add(parser):
    parser.add_argument("word")
def work(arguments):
    if arguments.word == "stop":
        raise KeyboardInterrupt
    print(arguments.word)
    return 0
sys.exit(main(sys.argv[1:], extra_verbs=[Verb("echo", "say it", add, work)]))
"""


def test_extra_verbs_run_and_ctrl_c_is_exit_130():
    call = [sys.executable, "-c", INTERRUPTED]
    assert run("echo", "hello", call=call)[:2] == (0, "hello\n")
    assert run("echo", "stop", call=call) == (130, "", "\n")
    assert "say it" in run("--help", call=call)[1]
    assert run("info", "nowhere", call=call)[0] == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_in_generate_prints_what_was_measured(folder, as_json):
    arguments = ["generate", folder, "the", "-n", "10000000", "--set=overflow=shift", "--set=ignore_eos=true"]
    process = subprocess.Popen(
        [*CALL, *arguments, *(["--json"] if as_json else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=ROOT), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    first = b""
    while len(first) < 300:  # several tokens; past the buffer, which `communicate` would not see
        first += os.read(process.stdout.fileno(), 1000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    err = err.decode("utf-8")
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopped by interrupt" in err and "tok/s" in err
    if as_json:
        *tokens, last = lines((first + out).decode("utf-8"))
        assert last["done"] is True and last["stop_reason"] == "interrupt" and last["tok_s"] > 0
        assert 0 <= last["tokens"] - len(tokens) <= 1


def test_info_and_its_check_need_no_numpy_and_no_backend(folder):
    script = ("import sys; sys.modules.update(numpy=None, onnxruntime=None, tokenizers=None)\n"
              "from merino_runtime.__main__ import main; sys.exit(main(sys.argv[1:]))")
    for words in (["info"], ["info", "--check"]):
        assert run(*words, folder, call=[sys.executable, "-c", script])[0] == 0


def test_it_runs_as_one_zip_file(folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(os.path.join(ROOT, "merino_runtime"), str(source / "merino_runtime"),
                    ignore=shutil.ignore_patterns("__pycache__"))
    entry = "import sys\nfrom merino_runtime.__main__ import main\nsys.exit(main())\n"
    (source / "__main__.py").write_text(entry)
    archive = str(tmp_path / "merino.pyz")
    zipapp.create_archive(str(source), archive)
    call = [sys.executable, archive]
    code, out, err = run("generate", ".", "the", "-n", "3", "--set=ignore_eos=true", call=call, cwd=folder)
    assert code == 0 and out.endswith("\n") and "3 tokens" in err
    assert run("selftest", ".", call=call, cwd=folder)[0] == 0
    assert run("info", "--check", "nowhere", call=call)[0] == 1
