"""Data of a training run: every format gives the ids that it should, once; what is wrong is said with its place."""

import json
import os
import resource
import subprocess
import sys
from collections import Counter

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_models import ARCH, story, write_stories

from merino_edge.bundles.chat import chat_of
from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.families.hugging_face import build_model, read_checkpoint
from merino_edge.text import documents
from merino_edge.text.documents import END_OF_TEXT
from merino_edge.text.rows import packed_rows
from merino_edge.text.tokenizer import load_tokenizer, train_tokenizer
from merino_edge.training.dataset import PATTERN, PackedRows, RowDataset, load_data, run_order, split
from merino_edge.training.recipe import Recipe
from merino_edge.training.shards import Tokenization, load_shard
from merino_edge.training.sources import chat_template, read_source, read_sources, segments_of
from merino_edge.training.train import train
from merino_runtime.errors import MerinoError

STORIES = [story(seed) for seed in range(60)]
TOKENIZER = train_tokenizer(STORIES, 290)
CHAT = ChatTemplate(
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}", {}, "the template",
)  # fmt: skip
CONVERSATION = [{"role": role, "content": f"{role} {number}"} for number in range(2) for role in ("user", "assistant")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, so that what was made in a test is counted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "merino_edge" / "tokens"


TOKENIZATION = Tokenization(TOKENIZER, CHAT)


def shard(path, tokenization=TOKENIZATION, notes=None):
    (source,) = read_sources([path])
    return load_shard(source, tokenization, (notes if notes is not None else []).append)


def group(*paths, length=32):
    return PackedRows([shard(path) for path in paths], length=length, pad=0, cut_long=False, what="the text")


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_all_forms(folder):
    """The stories in each format that `--data` takes: five paths."""
    records = [{"text": text, "meta": {"from": "nowhere"}} for text in STORIES]
    table = pyarrow.table({"text": STORIES, "meta": ["nowhere"] * len(STORIES)})
    pyarrow.parquet.write_table(table, folder / "stories.parquet")
    datasets.Dataset.from_list(records).save_to_disk(folder / "plain")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(records)}).save_to_disk(folder / "splits")
    return [
        write_stories(folder / "stories.txt"), write_lines(folder / "stories.jsonl", records),
        folder / "stories.parquet", folder / "plain", folder / "splits",
    ]  # fmt: skip


def test_every_format_gives_the_ids_of_its_documents(tmp_path):
    expected = [token for text in STORIES for token in TOKENIZER.encode(text).ids]
    for path in write_all_forms(tmp_path):
        result = shard(path)
        assert result.ids.tolist() == expected and result.ids.dtype == np.uint16, path
        assert result.learned is None and len(result.ends) == len(STORIES) and result.ends[-1] == len(expected)


def test_the_loss_of_a_completion_counts_and_that_of_its_prompt_does_not(tmp_path):
    records = [{"prompt": "the baker", "completion": " sells bread."}, {"prompt": "", "completion": "x"}]
    result = shard(write_lines(tmp_path / "a.jsonl", records))
    begin, prompt, completion = [0], TOKENIZER.encode("the baker", add_special_tokens=False).ids, None
    completion = [*TOKENIZER.encode(" sells bread.", add_special_tokens=False).ids, 0]
    second = [0, *TOKENIZER.encode("x", add_special_tokens=False).ids, 0]
    assert result.ids.tolist() == [*begin, *prompt, *completion, *second]
    assert result.learned.tolist() == [0] * (1 + len(prompt)) + [1] * len(completion) + [0] + [1] * (len(second) - 1)
    assert result.ends.tolist() == [1 + len(prompt) + len(completion), len(result.ids)]


def test_turns_of_one_sample_each_end_and_are_learned(tmp_path):
    """As the model will be asked: the first prompt behind what begins a text, each answer up to its end."""
    requested, output = ["the house\n> a\n", "> b\n"], ["x", "y"]
    result = shard(write_lines(tmp_path / "a.jsonl", [{"prompt": requested, "completion": output}]))
    prompts, answers = (TOKENIZER.encode_batch_fast(each, add_special_tokens=False) for each in (requested, output))
    turns = [[*prompt.ids, *answer.ids, 0] for prompt, answer in zip(prompts, answers, strict=True)]
    counts = zip(prompts, answers, strict=True)
    learned = [[0] * len(prompt.ids) + [1] * (len(answer.ids) + 1) for prompt, answer in counts]
    assert result.ids.tolist() == [0, *turns[0], *turns[1]] and result.ends.tolist() == [len(result.ids)]
    assert result.learned.tolist() == [0, *learned[0], *learned[1]]


def test_of_messages_the_assistants_turns_are_learned_up_to_their_end(tmp_path):
    result = shard(write_lines(tmp_path / "talk.jsonl", [{"messages": CONVERSATION}]))
    text = "<user>user 0</>\n<assistant>assistant 0</>\n<user>user 1</>\n<assistant>assistant 1</>\n"
    assert TOKENIZER.decode(result.ids.tolist(), skip_special_tokens=False) == text
    learned = TOKENIZER.decode([int(each) for each, counts in zip(result.ids, result.learned, strict=True) if counts])
    assert learned == "assistant 0</>\nassistant 1</>\n"


def test_records_of_alpaca_and_sharegpt_are_the_same_samples(tmp_path):
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3", "text": None}
    turns = [{"from": "human", "value": "Add.\n\n1 2"}, {"from": "gpt", "value": "3"}]
    messages = [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]
    expected = shard(write_lines(tmp_path / "messages.jsonl", [{"messages": messages}]))
    for name, record in (("alpaca.jsonl", alpaca), ("sharegpt.jsonl", {"conversations": turns})):
        result = shard(write_lines(tmp_path / name, [record]))
        assert result.ids.tolist() == expected.ids.tolist() and result.learned.tolist() == expected.learned.tolist()
    plain = shard(tmp_path / "alpaca.jsonl", Tokenization(TOKENIZER))
    text = TOKENIZER.decode(plain.ids.tolist())
    assert text == "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3"


@pytest.mark.parametrize("written", [lambda tools: tools, json.dumps])
def test_tools_of_a_record_reach_the_chat_template(written, tmp_path):
    text = "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}" + CHAT.text
    record = {"messages": CONVERSATION[:2], "tools": written([{"name": "lamp"}, {"name": "fan"}])}
    tokenization = Tokenization(TOKENIZER, CHAT._replace(text=text))
    result = shard(write_lines(tmp_path / "a.jsonl", [record]), tokenization)
    assert TOKENIZER.decode(result.ids.tolist()).startswith("[lamp][fan]<user>user 0</>")
    with pytest.raises(MerinoError, match="line 1, `tools` is '.lamp', must be a list"):
        shard(write_lines(tmp_path / "b.jsonl", [{**record, "tools": "[lamp"}]), tokenization)


def test_documents_longer_than_a_piece_are_the_same_documents(tmp_path, monkeypatch):
    """Read bit by bit and encoded in pieces: the ids are those of the whole text, wherever a bit ends."""
    texts = [f"  {story(1, 400)}\n\n {story(2, 300)} é€\U0001f600 ", "short", " \n ", story(3, 500)]
    path = tmp_path / "long.txt"
    path.write_text(END_OF_TEXT.join(texts))
    records = [{"text": text.strip()} for text in texts]
    expected = packed_rows([text.strip() for text in texts if text.strip()], TOKENIZER, 1).flatten().tolist()
    for piece, read in ((1 << 16, 1 << 20), (1000, 777), (997, 13), (5000, 1)):
        monkeypatch.setattr(documents, "SEGMENT", piece)
        monkeypatch.setattr(documents, "READ_BYTES", read)
        (source,) = read_sources([path])
        segments = list(segments_of(source, None))
        assert len(segments) > 10 if piece < 2000 else len(segments) >= 3
        for form in (path, write_lines(tmp_path / "long.jsonl", records)):
            ids = []
            for segment in segments_of(read_sources([form])[0], None):
                ids += [0] * segment.first + TOKENIZER.encode(segment.text, add_special_tokens=False).ids
            assert ids == expected, (piece, read, form)


FAULTS = {
    "empty.txt": (b"", "no text in .*empty.txt"),
    "blank.jsonl": (b"\n\n", "no text in .*blank.jsonl"),
    "latin.txt": ("x" * 3000 + "caf\u00e9").encode("latin-1"),
    "image.txt": (b"PNG\0\0" + bytes(99), "image.txt is not text, with a NUL byte"),
    "broken.jsonl": (b'{"text": "a"}\n\n{"text": \n', "broken.jsonl, line 3, is not JSON: .* at column"),
    "bytes.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', "bytes.jsonl, line 2, is not UTF-8"),
    "list.jsonl": (b"[1]\n", r"line 1, is \[1\], must be an object. Write one object a line instead of an array"),
    "array.json": (b'[{"text": "a"}]', "array.json has the suffix .json, which is not read: write one JSON"),
    "table.csv": (b"text\na\n", "table.csv has the suffix .csv, which is not read: write one JSON"),
    "narrator.jsonl": (b'{"conversations": [{"from": "narrator", "value": "a"}]}', "line 1, has no message of the ass"),
    "other.jsonl": (b'{"body": "a"}\n', "line 1, has none of these fields, but body, expected: `text`"),
    "half.jsonl": (b'{"prompt": "a"}\n', "line 1, has `prompt`, expected: "),
    "both.jsonl": (b'{"text": "a", "messages": []}\n', "line 1, has `text` and `messages`, expected: "),
    "number.jsonl": (b'{"text": 3}\n', "line 1, `text` is 3, must be a string"),
    "nothing.jsonl": (b'{"prompt": "a", "completion": ""}\n', "line 1, has an empty `completion`"),
    "uneven.jsonl": (b'{"prompt": ["a", "b"], "completion": ["c"]}\n', "line 1, has 2 prompts and 1 completions"),
    "mixed.jsonl": (b'{"text": "a"}\n{"prompt": "a", "completion": "b"}\n', "line 2, has `prompt` and `completion`, .*"
                    "but earlier records have `text`: a file has one form"),
    "mute.jsonl": (b'{"messages": [{"role": "user", "content": "a"}]}', "line 1, has no message of the assistant"),
    "string.jsonl": (b'{"messages": "a"}', "line 1, `messages` is 'a', must be a list"),
    "torn.parquet": (b"PAR1xxxx", "torn.parquet is not a Parquet file"),
}  # fmt: skip
FAULTS["latin.txt"] = (FAULTS["latin.txt"], r"latin.txt is not UTF-8 text \(byte 3,003\)")


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_said_with_its_place_and_leaves_nothing(name, tmp_path, cache):
    content, message = FAULTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MerinoError, match=message):
        shard(tmp_path / name)
    assert not cache.exists() or list(cache.iterdir()) == []
    if name not in ("mute.jsonl", "string.jsonl", "narrator.jsonl"):  # a template would be missing first
        with pytest.raises(MerinoError, match=message):
            train(ARCH, [tmp_path / name], tmp_path / "out", recipe=Recipe(steps=1))
        assert not (tmp_path / "out").exists()


def test_sources_and_weights_that_do_not_do_are_refused(tmp_path):
    text = write_stories(tmp_path / "a.txt")
    for data, message in (
        ([f"{text}:x"], "the weight 'x' must be 0 or more"), ([f"{text}:-1"], "the weight '-1'"),
        ([f"{text}:nan"], "the weight 'nan'"), ([f"{text}:0"], "sum to 0"),
        ([f"{text}:1", text], "a.txt has no weight and others have one"), ([tmp_path], "is a folder that"),
        ([tmp_path / "absent"], "absent does not exist"), (["absent.jsonl"], "absent.jsonl does not exist"),
        (["/dev/null"], "is a device"), ([f"{text}:0.0001", f"{text}:1"], "0.0001 of 1.0001 is less than a row"),
    ):  # fmt: skip
        with pytest.raises(MerinoError, match=message):
            train(ARCH, data, tmp_path / "out", recipe=Recipe(steps=1))
    with pytest.raises(MerinoError, match="--held-out .* takes no weight"):
        read_sources([f"{text}:1"], "--held-out")
    odd = write_stories(tmp_path / "b:0.5")
    assert read_sources([odd])[0].what == str(odd)
    assert [source.weight for source in read_sources([f"{odd}:2", f"{text}:0"])] == [2]


def test_messages_without_a_template_and_samples_longer_than_a_row(tmp_path):
    conversation = write_lines(tmp_path / "talk.jsonl", [{"messages": CONVERSATION}] * 9)
    with pytest.raises(MerinoError, match="talk.jsonl, line 1, has `messages`, and there is no chat template"):
        (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_str())
        recipe, tokenizer = Recipe(steps=1), tmp_path / "tokenizer.json"
        train(ARCH, [conversation], tmp_path / "out", recipe=recipe, tokenizer_file=tokenizer)
    long = {"prompt": "the " * 5, "completion": "miller " * 40}
    lost = {"prompt": "the miller " * 40, "completion": "x"}
    records = [{"prompt": story(seed, 1), "completion": " yes"} for seed in range(60)]
    path = write_lines(tmp_path / "long.jsonl", [*records, long, lost, *records])
    with pytest.raises(MerinoError, match="2 of 118 samples .* longer than a row of 32 .* the first is sample 61"):
        train(ARCH, [path], tmp_path / "out", recipe=Recipe(steps=1))
    messages = []
    train(ARCH, [path], tmp_path / "out", recipe=Recipe(steps=1, batch=2, cut_long=True), say=messages.append)
    assert any("1 samples are cut at 32 tokens; 1 are left out" in line for line in messages)


def test_chats_of_a_design_get_a_tokenizer_with_chatml_and_their_answers_are_learned(tmp_path):
    tool = {"type": "function", "function": {"name": "grind", "parameters": {"type": "object"}}}
    call = {"function": {"name": "grind", "arguments": {"hours": 2}}}
    turns = [{"role": "user", "content": "Grind."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    talk = [{"messages": [{"role": "user", "content": story(seed, 1)}, {"role": "assistant", "content": story(seed)}]}
            for seed in range(30)]  # fmt: skip
    path = write_lines(tmp_path / "talk.jsonl", [*talk, {"messages": turns, "tools": [tool]}])
    chat = chat_template(read_sources([path]))
    segments = list(segments_of(read_source(str(path), "--data"), chat))[-2:]
    system = f'<|im_start|>system\nTools:\n{json.dumps(tool)}\n<|im_end|>\n'
    assert segments[0].text == f"{system}<|im_start|>user\nGrind.<|im_end|>\n<|im_start|>assistant\n"
    written = '<tool_call>\n{"name": "grind", "arguments": {"hours": 2}}\n</tool_call><|im_end|>\n'
    assert segments[1].text == written and segments[1].learned
    arch = ARCH.model_copy(update={"context": 256, "vocab": 300})
    train(arch, [path], tmp_path / "out", recipe=Recipe(steps=1, batch=2))
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    assert [tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert not any("im_" in token for token in tokenizer.get_vocab() if not token.startswith("<|im_"))
    made = read_checkpoint(tmp_path / "out")
    assert set(made.stop_ids) == {0, 2} and made.chat.text == chat.text
    assert not chat_of(made.chat).why_jinja  # a board writes it without Jinja


def test_samples_are_packed_whole_and_see_only_themselves(tmp_path):
    """The logits of each sample in a row are those that it has alone."""
    records = [{"prompt": story(seed, 1)[: 9 + seed % 7], "completion": " yes"} for seed in range(40)]
    path = write_lines(tmp_path / "a.jsonl", records)
    result, rows = shard(path), group(path)
    assert len(rows) < 40
    torch.manual_seed(0)
    model = build_model(ARCH).eval()
    seen = 0
    for index in range(len(rows)):
        row_ids, labels, row_positions = rows[index]
        begins = [*np.flatnonzero(row_positions == 0).tolist(), 32]
        ids, positions = (torch.from_numpy(array)[None] for array in (row_ids, row_positions))
        with torch.no_grad():
            together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
            for begin, end in zip(begins[:-1], begins[1:], strict=True):
                alone = model(input_ids=ids[:, begin:end]).logits[0]
                assert torch.allclose(together[begin:end], alone, atol=1e-5)
        for begin, end in zip(begins[:-1], begins[1:], strict=True):
            if (labels[begin:end] != -100).any():
                first = int(result.ends[seen - 1]) if seen else 0
                assert row_ids[begin:end].tolist() == result.ids[first : result.ends[seen]].tolist()
                seen += 1
    assert seen == 40


def test_shards_are_made_once_by_content_and_tokenizer(tmp_path, cache):
    text = write_stories(tmp_path / "a.txt")
    messages = []
    first = shard(text, notes=messages).ids.tolist()
    (tmp_path / "moved.txt").write_bytes(text.read_bytes())
    assert shard(tmp_path / "moved.txt", notes=messages).ids.tolist() == first
    assert len(messages) == 1 and "tokens in" in messages[0]
    text.write_text(text.read_text() + " and more")
    shard(text)
    shard(text, Tokenization(train_tokenizer(STORIES, 280)))
    assert len(list(cache.iterdir())) == 3


def test_a_shard_that_another_user_could_have_written_is_refused(tmp_path, cache):
    text = write_stories(tmp_path / "a.txt")
    shard(text)
    (folder,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    with pytest.raises(MerinoError, match="other users may change .*tokens. Remove it.*XDG_CACHE_HOME"):
        shard(text)
    cache.chmod(0o700)
    shard(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
@pytest.mark.parametrize("name", ["", "ids.bin", "learned.bin"])
def test_a_shard_that_another_user_owns_is_refused(name, tmp_path, cache):
    text = write_stories(tmp_path / "a.txt")
    shard(text)
    (folder,) = cache.iterdir()
    os.chown(folder / name, 1234, 1234)
    with pytest.raises(MerinoError, match=f"other users may change {folder / name}"):
        shard(text)


def test_no_room_for_the_tokens_is_said_with_where_they_are_kept(tmp_path, cache):
    text = write_stories(tmp_path / "a.txt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MerinoError, match="tokens of .*a.txt cannot be kept: .*too large.*tokens, which may be"):
            shard(text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not cache.exists()
    shard(text)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.integers(1, 3000))
def test_a_pass_takes_every_row_once_and_a_shorter_run_takes_the_same_first_rows(sizes, seed, count):
    rows, first = run_order(sizes, [1.0] * len(sizes), count, seed), 0
    for size in sizes:
        taken = rows[(first <= rows) & (rows < first + size)].tolist()
        for start in range(0, len(taken), size):
            assert len(set(taken[start : start + size])) == len(taken[start : start + size])
        first += size
    assert max(rows) < first
    assert np.array_equal(run_order(sizes, [1.0] * len(sizes), count // 2, seed), rows[: count // 2])


def test_weights_are_shares_of_rows_and_each_pass_takes_every_row_once(tmp_path):
    paths = [write_stories(tmp_path / f"{number}.txt", range(number * 100, number * 100 + 40)) for number in range(3)]
    groups = [group(path) for path in paths]
    count, firsts = 4 * PATTERN, np.cumsum([0, *map(len, groups)])

    def drawn_by(seed):
        """Group and row in it of each place."""
        order = run_order(list(map(len, groups)), [0.5, 0.3, 1.2], count, seed)
        drawn = np.searchsorted(firsts, order, "right") - 1
        return list(zip(drawn.tolist(), (order - firsts[drawn]).tolist(), strict=True))

    drawn = drawn_by(7)
    assert Counter(group for group, _ in drawn[:PATTERN]) == Counter(group for group, _ in drawn[PATTERN : 2 * PATTERN])
    assert [sum(number == taken for taken, _ in drawn) for number in range(3)] == [1000, 600, 2400]
    for number in range(3):
        rows, many = [row for taken, row in drawn if taken == number], len(groups[number])
        turns = [rows[begin : begin + many] for begin in range(0, len(rows) - many, many)]
        assert len(turns) > 3 and all(sorted(turn) == list(range(many)) for turn in turns)
        assert turns[0] != turns[1] and turns[0] != list(range(many))
    assert drawn_by(7) == drawn and drawn_by(8)[:99] != drawn[:99]
    dataset = RowDataset(groups, run_order(list(map(len, groups)), [0.5, 0.3, 1.2], count, 7))
    taken, row = drawn[17]
    assert dataset[17]["input_ids"].tolist() == groups[taken][row][0].tolist()
    lines, sources = [], read_sources([f"{path}:1" for path in paths])
    load_data(sources, [], TOKENIZATION, Recipe(steps=1, batch=1), length=32, say=lines.append)
    assert sum(": 0 passes over its rows" in line for line in lines) == 2


def test_the_last_of_each_source_is_held_out_and_never_trained_on(tmp_path):
    paths = [write_stories(tmp_path / f"{number}.txt", range(number * 100, number * 100 + 60)) for number in range(2)]
    one = tmp_path / "one.txt"
    one.write_text(story(5, 400))
    recipe = Recipe(steps=300, batch=2)
    dataset, rows = load_data(read_sources([*paths, one]), [], Tokenization(TOKENIZER), recipe, length=32)
    parts = [split(shard(path, Tokenization(TOKENIZER)), 32) for path in (*paths, one)]
    held_out = np.concatenate([last.ids for _, last in parts])
    for path, (kept, last) in zip((*paths, one), parts, strict=True):
        whole = shard(path, Tokenization(TOKENIZER)).ids.tolist()
        assert [*kept.ids, *last.ids] == whole and 0.019 < len(last.ids) / len(whole) < 0.1
    result = np.concatenate([rows[index]["input_ids"].numpy() for index in range(len(rows))])
    assert result.tolist() == held_out[: len(result)].tolist() and len(held_out) - len(result) < 32
    last = parts[0][1].ids
    trained = {tuple(dataset[place]["input_ids"].tolist()) for place in range(len(dataset))}
    assert len(trained) * 32 == dataset.tokens and not any(
        tuple(last[place : place + 32].tolist()) in trained for place in range(len(last) - 31)
    )


def test_samples_and_text_train_together_by_weight_and_resume_exactly(tmp_path):
    from test_training_runs import ctrl_c_at, same_weights

    text = write_stories(tmp_path / "a.txt")
    records = [{"prompt": story(seed, 1), "completion": " yes."} for seed in range(80)]
    path = write_lines(tmp_path / "b.jsonl", records)
    data, recipe = [f"{text}:0.25", f"{path}:0.75"], Recipe(steps=12, batch=2, learning_rate=3e-3)
    record = train(ARCH, data, tmp_path / "whole", recipe=recipe)
    assert [each["weight"] for each in record["data"]] == [0.25, 0.75]
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, data, tmp_path / "out", recipe=recipe, progress=ctrl_c_at(5))
    with pytest.raises(MerinoError, match="--data is .*weight 0.5.*; the run's is .*weight 0.75"):
        train(ARCH, [data[0], f"{path}:0.5"], tmp_path / "out", recipe=recipe, resume=True)
    train(ARCH, data, tmp_path / "out", recipe=recipe, resume=True)
    assert same_weights(tmp_path / "out", tmp_path / "whole")


LIMITED = """
import resource, sys
from pathlib import Path
from sample_models import ARCH
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
import merino_edge.training.train
arch = ARCH.model_copy(update={"context": 256})  # the order of rows takes 4 bytes per row
keys = {"tokenizer_file": Path(sys.argv[2]), "held_out": [sys.argv[3]]}
train(arch, [sys.argv[3]], Path("warm"), recipe=Recipe(steps=1, batch=2, threads=1), **keys)
private = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
limit = private + (int(sys.argv[4]) << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
train(arch, [sys.argv[1]], Path("out"), recipe=Recipe(steps=2, batch=2, threads=1), **keys)
"""


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("mb", [40, 300])
def test_a_text_larger_than_the_memory_trains(mb, tmp_path):
    """By a limit on what the process may hold beside mapped files: the text, and its tokens, would not fit."""
    small, large = write_stories(tmp_path / "small.txt"), tmp_path / "large.txt"
    block = (END_OF_TEXT.join(STORIES) + END_OF_TEXT).encode() * 20
    with large.open("wb") as file:
        while file.tell() < mb << 20:
            file.write(block)
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_str())
    arguments = [str(large), "tokenizer.json", str(small), str(max(25, mb // 10))]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["train_tokens"] > mb << 18
