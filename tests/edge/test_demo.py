"""The demo's conversation, with a small model in place of the published one (tests/targets/test_models.py has that)."""

import chat_bundle
import pytest

from merino_edge.cli.app import main
from merino_edge.embedded import FOLDER
from merino_runtime.bundle import load_bundle


def run(capfd, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return (ended.value.code or 0, *capfd.readouterr())


def test_a_model_that_talks_answers_a_question_in_int8(decoder, tmp_path, capfd):
    folder = tmp_path / "chats"
    folder.mkdir()
    chat_bundle.make_checkpoint(folder, decoder)
    code, out, err = run(capfd, "demo", "--chat", str(folder), "-o", str(tmp_path / "out"))
    assert code == 0, err
    bundle = load_bundle(str(tmp_path / "out" / "chat-int8"))
    assert (bundle.precision, bundle.context, bundle.chat is None) == ("int8", 1024, False)
    question, answer = out.split("> What is gravity?")
    assert "export chats to int8" in question and "answers kept" in question and len(answer.strip()) > 3
    assert "tok/s" in err and "peak RSS" in err


def test_a_model_that_does_not_talk_is_refused_before_the_export(tmp_path, capfd):
    code, _, err = run(capfd, "demo", "--chat", str(FOLDER), "-o", str(tmp_path / "out"))
    assert code == 1 and "has no chat template: `make demo-chat` requires a chat model" in err
    assert not (tmp_path / "out").exists()
