"""The demo's conversation, with a small model in place of the published one (tests/targets/test_models.py has that)."""

import re

import chat_bundle
import pytest

from merino_edge.cli import demo
from merino_edge.cli.app import main
from merino_edge.embedded import FOLDER
from merino_runtime.bundle import load_bundle


def run(capfd, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return (ended.value.code or 0, *capfd.readouterr())


@pytest.mark.parametrize(("core", "first"), [("dotprod", "int8"), ("avx512-vnni", "int4")])
def test_a_model_that_talks_answers_a_question_in_the_fastest_format(
    core, first, decoder, tmp_path, capfd, monkeypatch
):  # fmt: skip
    monkeypatch.setattr(demo, "core_here", lambda: core)
    folder = tmp_path / "chats"
    folder.mkdir()
    chat_bundle.make_checkpoint(folder, decoder)
    code, out, err = run(capfd, "demo", "--chat", str(folder), "-o", str(tmp_path / "out"))
    assert code == 0, err
    question, answer = out.split("> What is gravity?")
    made = re.findall(r"export chats to (\w+)", question)  # the first that keeps the answers is the last that was made
    bundle = load_bundle(str(tmp_path / "out" / f"chat-{made[-1]}"))
    assert (bundle.core, bundle.precision, bundle.context, bundle.chat is None) == (core, made[-1], 1024, False)
    assert made[0] == first and "answers kept" in question and len(answer.strip()) > 3
    assert "tok/s" in err and "peak RSS" in err


def test_a_model_that_does_not_talk_is_refused_before_the_export(tmp_path, capfd):
    code, _, err = run(capfd, "demo", "--chat", str(FOLDER), "-o", str(tmp_path / "out"))
    assert code == 1 and "has no chat template: `make demo-chat` requires a chat model" in err
    assert not (tmp_path / "out").exists()
