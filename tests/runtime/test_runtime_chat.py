"""The command `chat` as a process, and what a terminal of any width shows of an answer."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from processes import on_a_terminal
from test_runtime_conversation import conversation_of

import merino_runtime
from merino_runtime.chat import session
from merino_runtime.chat.commands import Record, parse_line
from merino_runtime.chat.session import converse
from merino_runtime.chat.template import Thinking
from merino_runtime.errors import MerinoError

ROOT = os.path.dirname(os.path.dirname(merino_runtime.__file__))
CALL = [sys.executable, "-m", "merino_runtime", "chat"]
WILD = ("--temperature", "100", "--set=top_k=0", "--set=top_p=1", "--set=min_p=0", "--set=seed=5", "-n", "20")


def run(folder, *options, typed):
    process = subprocess.Popen([*CALL, folder, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=ROOT))
    out, err = process.communicate(typed if isinstance(typed, bytes) else typed.encode("utf-8"))
    err = err.decode("utf-8", "replace")
    assert "Traceback" not in err, err
    return process.returncode, out.decode("utf-8"), err


def test_on_a_pipe_a_line_is_a_turn_and_stdout_has_the_answers_alone(chat_dir, tmp_path):
    saved = tmp_path / "talk.json"
    typed = f"Hello\n/stats\n\n//etc is a folder\n/save {saved}\n/system Be brief.\n/help\n/exit\nnever\n"
    code, out, err = run(chat_dir, *WILD, typed=typed)
    assert code == 0, err
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant"] * 2
    assert [each["content"] for each in messages[::2]] == ["Hello", "/etc is a folder"]
    assert out == "".join(each["content"] + "\n" for each in messages[1::2])
    assert "computed" in err and "from the cache" in err and "wrote " + str(saved) in err
    assert "system: Be brief." in err and "/reset: forget" in err and "\x1b" not in out + err


def test_json_is_a_line_per_event_and_what_cannot_be_done_ends_nothing(chat_dir):
    typed = "Hello\n/what\nAnd you?\n/stats\n/reset\nHello\n"
    code, out, err = run(chat_dir, *WILD, "--json", typed=typed)
    assert (code, err) == (1, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert set(events[0]) == {"chat", "context", "system"} and events[0]["context"] == 256
    first, second, stats, reset, third = [event for event in events if event.get("done")]
    assert [event["error"][:25] for event in events if "error" in event] == ["there is no command /what"]
    assert first["prefill_tokens"] == first["prompt_tokens"] and second["turns"] == 2
    assert second["prefill_tokens"] <= second["prompt_tokens"] - first["context_used"] + 1
    assert stats["command"] == "stats" and "computed" in stats["output"] and reset["command"] == "reset"
    assert (third["answer"], third["turns"]) == (first["answer"], 1)
    texts = [event["text"] for event in events if "text" in event]
    assert "".join(texts[:first["tokens"]]) == (first["thinking"] or "") + first["answer"]


@pytest.mark.parametrize("typed, message", [
    (b"a\n\xff\xfe\n", "line 2 of stdin is not UTF-8"), (b"x" * (2 ** 20 + 1), "line 1 of stdin is longer than"),
    (b"/save\n", "/save needs a file"), (b"/reset now\n", "/reset takes nothing"), (b"/save /no/such/x\n", "/no/such"),
    ("y" * 300 + "\n", "Shorten it")], ids=range(6))
def test_what_cannot_be_done_is_said_and_in_the_exit_code(chat_dir, typed, message):
    code, _, err = run(chat_dir, "-n", "2", typed=typed)
    assert code == 1 and message in err.splitlines()[-1]
    code, out, err = run(chat_dir, "-n", "2", "--json", typed=typed)
    assert code == 1 and message in json.loads(out.splitlines()[-1])["error"] and err == ""


def test_a_talk_is_not_saved_over_its_bundle(chat_dir, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(chat_dir, str(bundle))
    os.symlink("bundle/bundle.json", str(tmp_path / "link.json"))
    before = {name: (bundle / name).read_bytes() for name in os.listdir(str(bundle))}
    names = [str(bundle / name) for name in ("bundle.json", "model.onnx", "tokenizer.json")]
    names.append(str(tmp_path / "link.json"))
    typed = "".join(f"/save {name}\n" for name in names) + f"/save {bundle / 'talk.json'}\n"
    for options in ((), ("--json",)):
        code, out, err = run(str(bundle), *options, typed=typed)
        assert code == 1 and (out + err).count("is a file of the bundle that this chat runs on") == 4
    (bundle / "talk.json").unlink()
    assert {name: (bundle / name).read_bytes() for name in os.listdir(str(bundle))} == before


def test_a_stop_right_behind_a_message_stops_its_answer(chat_dir):
    greedy = ("--temperature", "0", "--json", "--set=overflow=error")
    code, out, _ = run(chat_dir, *greedy, typed="Hello\n\x03\n/reset\nHello\n")
    first, _, second = [event for event in map(json.loads, out.splitlines()) if event.get("done")]
    assert code == 0 and (first["stop_reason"], first["tokens"]) == ("interrupt", 1)
    assert second["stop_reason"] != "interrupt" and second["tokens"] > 1


def test_a_system_message_without_room_is_called_one(chat_dir):
    code, out, err = run(chat_dir, "--system", "x " * 300, typed="Hello\n")
    assert (code, out) == (1, "") and "the system message has" in err and "context is 256" in err
    code, out, err = run(chat_dir, "-n", "2", typed="/system " + "x " * 300 + "\nHello\n")
    assert code == 1 and "the system message has" in err and out.count("\n") >= 1


def test_a_bundle_that_cannot_talk_is_refused(bundle_dirs):
    code, out, err = run(str(bundle_dirs["portable"]), typed="a\n")
    assert (code, out) == (1, "") and "has no chat template" in err and "`generate`" in err


def test_a_terminal_shows_answers_and_commands(chat_dir):
    typed = b"Hello, who are you?\n/stats\n/help\n/wrong\n/exit\n"
    code, shown = on_a_terminal([*CALL, chat_dir, *WILD], width=40, typed=typed, PYTHONPATH=ROOT)
    assert code == 0 and "from the cache" in shown
    assert "there is no command /wrong" in shown and "/save FILE: write" in shown


def answers(monkeypatch, chat_session, typed, interrupts_at=()):
    """What `converse` shows on a terminal. typed: lines, or exceptions at the prompt.
    interrupts_at: writes at which ctrl-C comes."""
    shown, left = [], iter(typed)

    def enter(_):
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def write(text):
        shown.append(text)
        if len(shown) in interrupts_at:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", enter)
    monkeypatch.setattr(session, "write_out", write)
    monkeypatch.setattr(session, "is_terminal", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    try:
        code = converse(chat_session, "it")
    except KeyboardInterrupt:
        code = "interrupt"
    return code, "".join(shown)


def test_ctrl_c_stops_the_answer_and_not_the_talk_wherever_it_comes(monkeypatch):
    whole = None
    for at in range(3, 40):
        conversation = conversation_of("one two three four<|im_end|>")
        code, shown = answers(monkeypatch, conversation, ["a", "b"], interrupts_at=[at] if at < 39 else [])
        assert code == 0
        whole = shown if at == 39 else whole
        assert shown.count("one two three four") in (1, 2)
    assert whole.count("one two three four\n") == 2


def test_ctrl_c_at_the_prompt_leaves_where_it_comes_twice(monkeypatch):
    stop = KeyboardInterrupt()
    code, shown = answers(monkeypatch, conversation_of("ok<|im_end|>"), [stop, "a", stop, "b", stop, stop, "never"])
    assert code == "interrupt" and shown.count("ok\n") == 2 and shown.count("once more") == 3
    assert answers(monkeypatch, conversation_of("ok<|im_end|>"), ["/exit", "a"])[0] == 0


def test_thinking_is_dimmed_and_nothing_that_steers_is_shown(monkeypatch):
    conversation = conversation_of("<think>hm</think>Yes\x1b[2J<|im_end|>")
    _, shown = answers(monkeypatch, conversation, ["a"])
    assert "\x1b[2m<think>hm</think>\x1b[22mYes\\x1b[2J\n" in shown


def test_the_context_is_told_of(monkeypatch):
    _, shown = answers(monkeypatch, conversation_of("x ", context=120), ["a", "b", "/reset", "c" * 120])
    plain = re.sub(r"\x1b\[\d+m|\n", " ", shown)
    assert "context of 120 tokens is full" in plain and "the conversation has" in plain and "Shorten it" in plain
    _, shown = answers(monkeypatch, conversation_of("ok<|im_end|>", {"overflow": "shift"}, context=120), list("abcd"))
    assert "the oldest 2 turns are left out" in re.sub(r"\x1b\[\d+m|\n", " ", shown).replace("  ", " ")


@examples(200)
@given(st.text("<>think/ab", max_size=20), st.booleans(), st.data())
def test_thinking_is_told_wherever_the_text_is_cut(text, thinks, data):
    text = text.replace("a", "<think>").replace("b", "</think>")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)) | {0, len(text)})

    def events_of(pieces):
        thinking, result = Thinking(thinks), []
        for piece in pieces:
            result += thinking.push(piece)
        result += thinking.finish()
        return "".join(("T" if dim else "-") * len(piece) + piece for piece, dim in result), [
            dim for piece, dim in result for _ in piece], "".join(piece for piece, _ in result)

    parts = [text[start:end] for start, end in zip(cuts, cuts[1:])]  # noqa: B905, not in 3.6
    assert events_of(parts)[1:] == events_of([text])[1:] and events_of(parts)[2] == text


@pytest.mark.parametrize("typed, expected", [
    ("hi", ("", "hi")), ("//x", ("", "/x")), ("/reset", ("reset", "")), ("/system  Be brief ", ("system", "Be brief")),
    ("/save a b", ("save", "a b")), (" /reset", ("", " /reset")), ("/", None), ("/Reset", None), ("/exit now", None)])
def test_lines_and_commands(typed, expected):
    if expected is None:
        with pytest.raises(MerinoError):
            parse_line(typed)
    else:
        assert parse_line(typed) == expected


def test_what_was_dropped_or_not_answered_is_not_saved(tmp_path):
    record = Record("S")
    done = {"tokens": 1, "answer": "x"}
    for number in range(3):
        record.add(str(number), done, dropped_turns=2 if number == 2 else 0)
    record.add("4", dict(done, tokens=0), 0)
    record.save(str(tmp_path / "talk.json"))
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [each["content"] for each in saved] == ["S", "2", "x"]
