"""The Python API as its page shows it, and a KV cache on disk, on bundles of both dialects."""
import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import merino_runtime
from merino_runtime.api import open_model
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Token, TokenLogprobs
from merino_runtime.io import board
from merino_runtime.sampling import GREEDY, GenerateOptions, Sampling

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "python.md"
OPTIONS = {"max_new_tokens": 6, "sampling": GREEDY, "ignore_eos": True}


def alone(folder, ids, options=OPTIONS):
    """The ids that a fresh model gives behind these ids."""
    from merino_runtime.generation.generate import Generation

    with open_model(folder, threads=1) as other:
        *tokens, _ = Generation(other.backend, ids,
                                GenerateOptions(max_new_tokens=options["max_new_tokens"], sampling=GREEDY))
    return [token.id for token in tokens]


def test_the_pages_example_runs(folder, tmp_path, monkeypatch):
    os.symlink(os.path.abspath(folder), str(tmp_path / "bundle"))
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) == 1
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(examples[0], str(PAGE), "exec"), {})  # noqa: S102
    assert "'length'" not in out.getvalue() and " length\n" in out.getvalue()
    assert (tmp_path / "prompt.cache").exists()


def test_stream_is_the_text_of_generate(model):
    *tokens, done = model.generate("the river", **OPTIONS)
    assert "".join(model.stream("the river", **OPTIONS)) == "".join(token.text for token in tokens)
    assert done.tokens == 6 and done.stop_reason == "length"


def test_each_token_that_is_not_forced_is_followed_by_its_log_probability(model):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}
    for options in ({}, {"json_schema": schema, "ignore_eos": False, "max_new_tokens": 30}):
        options = dict(OPTIONS, **options)
        *events, done = model.generate("the river", top=2, **options)
        *without, last = model.generate("the river", **options)
        tokens = [event for event in events if isinstance(event, Token)]
        assert tokens == without and done.forced == last.forced == len(tokens) - (len(events) - len(tokens))
        assert bool(done.forced) == ("json_schema" in options)
        for token, event in zip(events, events[1:]):  # noqa: B905, not in 3.6
            if isinstance(event, TokenLogprobs):
                assert len(event.top) == 2 and event.logprob <= event.top[0][1] <= 0
                assert "json_schema" in options or event.top[0] == (token.id, event.logprob)


def test_a_conversation_computes_each_turns_new_text_alone_and_continues_it(model, folder):
    conversation = model.conversation()
    first = "".join(conversation.reply("the mill", **OPTIONS))
    assert first == "".join(model.stream("the mill", **OPTIONS)) and conversation.done.tokens == 6
    before, text = conversation.ids[:], " and the baker"
    "".join(conversation.reply(text, **OPTIONS))
    prompt = before + model.tokenizer.encode_pieces([(text, True)])
    begin = model.tokenizer.encode("a")[0]
    assert model.tokenizer.encode(text)[0] == begin, "the tokenizer puts a token before a text"
    assert conversation.ids == prompt + alone(folder, prompt)
    assert begin not in prompt[len(before):]
    assert conversation.done.prefill_tokens == len(prompt) - len(before) + 1  # the last reply's last id too


def test_a_reply_that_was_not_read_to_its_end_counts_as_far_as_it_was_read(model, folder):
    conversation = model.conversation()
    pieces = conversation.reply("the mill", **OPTIONS)
    next(pieces)
    pieces.close()
    assert conversation.done is None
    ids = conversation.ids[:]
    "".join(conversation.reply("", **OPTIONS))
    assert conversation.ids == ids + alone(folder, ids)
    with pytest.raises(MerinoError, match="the conversation is empty"):
        model.conversation().reply("")


def test_forks_stream_in_two_threads(model):
    prompts, result = ["the river", "warm bread"], {}
    expected = {prompt: "".join(model.stream(prompt, **OPTIONS)) for prompt in prompts}
    with model.fork() as other:
        def work(one, prompt):
            result[prompt] = "".join(one.stream(prompt, **OPTIONS))

        threads = [threading.Thread(target=work, args=pair) for pair in [(model, prompts[0]), (other, prompts[1])]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert result == expected


def test_after_with_the_model_is_closed_and_says_so(folder):
    with open_model(folder) as model:
        fork = model.fork()
    with pytest.raises(MerinoError, match="this backend is closed"):
        list(model.stream("the", **OPTIONS))
    assert len("".join(fork.stream("the", **OPTIONS))) > 0
    fork.close()


@pytest.mark.parametrize("options, message", [
    ({"max_new_tokens": 0}, "0 new tokens"), ({"max_new_tokens": "9"}, "'9' new tokens were requested"),
    ({"sampling": 0.0}, "sampling is 0.0, allowed is a Sampling"), ({"stops": "end"}, "stops are 'end'"),
    ({"stops": 5}, "stops are 5"), ({"sampling": Sampling(top_p=7.0)}, "top_p is 7.0"),
    ({"stops": [""]}, "stop string"), ({"overflow": "wrap"}, "'wrap', allowed")])
def test_a_wrong_request_is_refused_before_anything_is_computed(model, options, message):
    with pytest.raises(MerinoError, match=message):
        model.stream("the", **options)
    with pytest.raises(MerinoError, match=message):
        model.conversation().reply("the", **options)
    assert model.backend.ids == []


@pytest.mark.parametrize("top", [-1, True, 2.0, "3"])
def test_a_number_of_likeliest_ids_that_cannot_be_is_refused(model, top):
    with pytest.raises(MerinoError, match=f"top is {top!r}, allowed: an integer, 0 or more, or none"):
        model.generate("the", top=top)
    assert model.backend.ids == []


def test_notes_go_to_the_caller(folder, monkeypatch):
    here = board.this_board()
    monkeypatch.setattr(board, "this_board", lambda: here._replace(memory_available_mb=1.0))
    notes = []
    open_model(folder, say=notes.append).close()
    assert len(notes) == 1 and "1 MB are available" in notes[0]


@pytest.mark.parametrize("disturb", [
    lambda model: next(model.generate("in the morning", **OPTIONS)),
    lambda model: list(model.generate("the river", **OPTIONS)),
    lambda model: next(model.conversation().reply("the miller", **OPTIONS)),
    lambda model: model.load_cache("kept"), lambda model: model.selftest(),
    lambda model: model.backend.truncate(model.backend.length - 1), lambda model: model.backend.step(1)])
def test_a_generation_whose_cache_was_changed_raises_when_it_is_resumed(model, tmp_path, monkeypatch, disturb):
    monkeypatch.chdir(tmp_path)
    model.save_cache("kept")
    first = model.generate("the river", **OPTIONS)
    next(first)
    disturb(model)
    with pytest.raises(MerinoError, match="changed by something else.*fork"):
        next(first)
    assert list(first) == []


def test_of_two_generations_in_turn_the_later_one_goes_on_as_if_alone(model):
    expected = [token.id for token in list(model.generate("in the morning", **OPTIONS))[:-1]]
    first, second = (model.generate(text, **OPTIONS) for text in ("the river", "in the morning"))
    next(first)
    results = [next(second).id]
    with pytest.raises(MerinoError, match="changed by something else"):
        next(first)
    assert results + [token.id for token in list(second)[:-1]] == expected


def test_a_fork_beside_a_generation_does_not_disturb_it(model):
    expected = [token.id for token in list(model.generate("the river", **OPTIONS))[:-1]]
    first = model.generate("the river", **OPTIONS)
    results = [next(first).id]
    with model.fork() as other:
        list(other.generate("in the morning", **OPTIONS))
    assert results + [token.id for token in list(first)[:-1]] == expected


ROOT = os.path.dirname(os.path.dirname(merino_runtime.__file__))
CALL = [sys.executable, "-m", "merino_runtime", "generate"]
IDS = [5, 9, 100, 3, 77, 31, 2, 200]


@pytest.fixture
def saved(model, tmp_path):
    model.backend.prefill(IDS)
    model.save_cache(str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_restored_cache_continues_with_the_very_same_logits(model, saved, folder):
    assert os.listdir(str(saved.parent)) == ["cache"]
    expected = model.backend.step(7).copy()
    with open_model(folder, threads=1) as other:
        other.backend.prefill([1, 2, 3])
        other.load_cache(str(saved))
        assert other.backend.ids == IDS
        np.testing.assert_array_equal(other.backend.step(7), expected)


def test_another_bundles_cache_is_refused(model, saved, tmp_path):
    shutil.copytree(model.bundle.folder, str(tmp_path / "other"))
    described = json.loads((tmp_path / "other" / "bundle.json").read_text())
    described["weights_source"] = "elsewhere"
    (tmp_path / "other" / "bundle.json").write_text(json.dumps(described))
    with open_model(str(tmp_path / "other"), threads=1) as other:
        other.backend.prefill([1, 2])
        with pytest.raises(MerinoError, match="written by another bundle than 'tiny'"):
            other.load_cache(str(saved))
        assert other.backend.ids == []


def rewritten(path, change):
    magic, header, payload = path.read_bytes().split(b"\n", 2)
    described = json.loads(header.decode())
    change(described)
    path.write_bytes(b"\n".join([magic, json.dumps(described).encode(), payload]))


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.write_bytes(b""), "not a cache that merino wrote"),
    (lambda path: path.write_bytes(b"merino-cache\n{"), "header is not JSON"),
    (lambda path: path.write_bytes(b"merino-cache\n[]\n"), "schema null"),
    (lambda path: rewritten(path, lambda header: header.update(schema=3)), "schema 3, this runtime reads schema 2"),
    (lambda path: rewritten(path, lambda header: header.pop("ids")), "other keys"),
    (lambda path: rewritten(path, lambda header: header["ids"].append(1)), "arrays are not"),
    (lambda path: rewritten(path, lambda header: header.update(ids=[10 ** 6] * 8)), "ids are not"),
    (lambda path: rewritten(path, lambda header: header["arrays"].pop()), "arrays are not"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "ends too early"),
    (lambda path: path.write_bytes(path.read_bytes() + b"x"), "another sha256"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "another sha256"),
    (lambda path: path.unlink(), "cannot read the cache .*No such file")])
def test_a_damaged_file_is_refused_and_leaves_an_empty_cache(model, saved, damage, message):
    damage(saved)
    with pytest.raises(MerinoError, match=message):
        model.load_cache(str(saved))
    assert model.backend.ids == []
    assert model.backend.prefill(IDS).shape == (model.bundle.vocab,)


def test_the_command_line_computes_a_prompt_once(folder, tmp_path):
    def generated(prompt):
        arguments = [folder, prompt, "-n", "4", "--temperature", "0", "--set=ignore_eos=true", "--json",
                     "--cache", path]
        out = subprocess.check_output([*CALL, *arguments], env=dict(os.environ, PYTHONPATH=ROOT))
        *tokens, last = [json.loads(line) for line in out.decode().splitlines()]
        return [token["id"] for token in tokens], last["prefill_tokens"]

    path = str(tmp_path / "cache")
    first, computed = generated("the river runs")
    content = (tmp_path / "cache").read_bytes()
    assert computed > 2
    assert generated("the river runs") == (first, 1)
    longer, rest = generated("the river runs past the mill")
    assert (tmp_path / "cache").read_bytes() == content  # a file that is there is read only
    path = str(tmp_path / "another")
    result, alone = generated("the river runs past the mill")
    assert result == longer and alone - rest >= computed - 1  # the last token may end otherwise before more text


@pytest.mark.parametrize("wrong", [None, 1.5, True, {}, object(), float("nan")],
                         ids=["none", "real", "true", "dict", "object", "nan"])
@pytest.mark.parametrize("call", [
    lambda model, wrong: model.save_cache(wrong), lambda model, wrong: model.load_cache(wrong),
    lambda model, wrong: model.backend.prefill(wrong), lambda model, wrong: model.backend.prefill([1, wrong]),
    lambda model, wrong: model.backend.step(wrong), lambda model, wrong: model.backend.truncate(wrong),
    lambda model, wrong: list(model.backend.logits_from(wrong, [1, 2])),
    lambda model, wrong: list(model.backend.logits_from(0, wrong))])
def test_arguments_of_another_type_are_refused_in_words(model, call, wrong):
    model.backend.truncate(0)
    with pytest.raises(MerinoError):
        call(model, wrong)
