"""Tokenizers made of a GGUF's lists: the ids of llama.cpp, for each way to cut text and for SentencePiece."""

import contextlib
import json
import random
import unicodedata
import urllib.request

import pytest
import sample_gguf as sample
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

from merino_edge.families.gguf.file import open_gguf
from merino_edge.families.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    WORDS,
    chat_template,
    stop_ids,
)
from merino_edge.families.gguf.tokenizer import tokenizer_json as made_json
from merino_runtime.generation.text import Tokenizer

TEXT = (
    "Once upon a time, in 1987, there weren't 1,000 foxes; they'd run 3.14 miles (I'LL say: it's fun!) and didn't stop."
    " The quick brown fox jumps over the lazy dog. def run(x):\n    return x + 1\n\n\nWhat's the élan of naïve cafés?"
)
PIECES = (
    "Once", " upon", " a", "'s", "'T", "'LL", " don't", "   ", "\n", "\n\n", "\t", "1987", "4 5", "½", "²", "٣", "é",
    "中文", "🙂", "def f(x):\n    return x", "\u00a0", "\u3000", "ß", "...", "!?", " --", "http://a.b/c?d=1", "\r\n",
    "Ω", "हिन्दी", "$5",
    "<|im_end|>", "\ufffd", "▁", " ",
)  # fmt: skip
NOT_IN_LLAMA_CPP = {"gpt-neox", "llama3", "llama-v3"}  # names that not every llama.cpp knows


def byte_level_tokens(pre):
    """A BPE of 600 tokens, and two special ones."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        [TEXT] * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    texts = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_start|>", "<|im_end|>"]

    def add(writer, _vocab):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(texts)
        writer.add_token_types([NORMAL] * (len(texts) - 2) + [CONTROL] * 2)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
        writer.add_bos_token_id(len(texts) - 2)
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template("{{ messages }}")

    return add, len(texts)


def sentence_piece_tokens(first_space, defined=()):
    """Bytes, characters, and what BPE joins of them; the earlier joined, the higher the score. `defined`: tokens that
    a user defined."""
    marked = TEXT.replace(" ", "▁")
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator([marked] * 3, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    vocabulary = json.loads(trained.to_str())["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.get)
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *defined]

    def add(writer, _vocab):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(texts)
        writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(pieces))] + [0.0] * len(defined))
        kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), *[USER_DEFINED] * len(defined)]
        writer.add_token_types(kinds)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(first_space)

    return add, len(texts)


def written(tmp_path, tokens):
    add, vocab = tokens
    model = sample.random_model("llama", num_hidden_layers=1, vocab_size=vocab)
    return sample.write_gguf(tmp_path / "model.gguf", model, tokenizer=add)


@contextlib.contextmanager
def llama_cpp(path):
    """A function of a text that gives llama.cpp's ids."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (peers)")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity, params.n_parallel = str(path), 64, False, -1, 1
    server = xllamacpp.Server(params)

    def ids(text):
        requested = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", requested, {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))["tokens"]

    yield ids


def texts(count):
    rng = random.Random(1)
    for _ in range(count):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 10)))
        yield "".join(rng.choices("abcdefghi tuvwx ABC 0123456789'.,\n", k=rng.randint(1, 40)))


@pytest.mark.slow
@pytest.mark.parametrize("pre", [name for name in WORDS if name not in NOT_IN_LLAMA_CPP])
def test_words_are_cut_as_llama_cpp_cuts_them(tmp_path, pre):
    path = written(tmp_path, byte_level_tokens(pre))
    own = tokenizers.Tokenizer.from_str(made_json(open_gguf(path).metadata))
    with llama_cpp(path) as other:
        assert [text for text in texts(60) if own.encode(text).ids != other(text)] == []


GEMMA = (*(" " * count for count in range(2, 32)), "\n\n\n\n", "\n\n\n\n\n", "\t\t", "<table>", "</table>")


def spaced(count):
    """Texts with runs of spaces, as code and tables have them."""
    rng = random.Random(2)
    for _ in range(count):
        parts = [rng.choice((" " * rng.randint(1, 70), *PIECES[:15], *GEMMA[-5:])) for _ in range(rng.randint(1, 8))]
        yield "".join(parts)


@pytest.mark.slow
def test_runs_of_spaces_that_a_user_defined_are_tokens_as_in_gemma_3(tmp_path):
    """They are no merges, which a tokenizer.json separates by a space."""
    path = written(tmp_path, sentence_piece_tokens(False, GEMMA))
    described = made_json(open_gguf(path).metadata)
    own, board = tokenizers.Tokenizer.from_str(described), Tokenizer(described)
    with llama_cpp(path) as other:
        assert [text for text in spaced(80) if own.encode(text).ids != other(text)] == []
    for text in spaced(80):
        ids = board.encode(text)
        assert ids == own.encode(text).ids and b"".join(map(board.bytes_of, ids)).decode() == text


def test_gemma_3s_runs_of_spaces_are_read_by_the_board(tmp_path):
    board = Tokenizer(made_json(open_gguf(written(tmp_path, sentence_piece_tokens(False, GEMMA))).metadata))
    ids = board.encode("a" + " " * 40 + "b\n\n\n\n")
    assert [board.bytes_of(one) for one in ids[1:]] == [b"a", b" " * 31, b" " * 9, b"b", b"\n\n\n\n"]


def test_qwens_texts_are_composed_as_its_own_tokenizer_composes_them(tmp_path):
    """llama.cpp leaves e and an accent apart, which Qwen's tokenizer.json (NFC) does not: the model learned from the
    latter."""
    metadata = open_gguf(written(tmp_path, byte_level_tokens("qwen2"))).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    own = transformers.Qwen2Tokenizer(
        vocab={text: index for index, text in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
    )
    board = Tokenizer(made_json(metadata))
    apart = [unicodedata.normalize("NFD", text) for text in ("naïve cafés", "Ω", "élan Å", "한글")]
    assert [board.encode(text) for text in apart] == [own(text)["input_ids"] for text in apart]
    assert board.encode("cafe\u0301") == board.encode("café")


@pytest.mark.slow
@pytest.mark.parametrize("first_space", [True, False])
def test_sentence_piece_gives_the_ids_of_llama_cpp(tmp_path, first_space):
    path = written(tmp_path, sentence_piece_tokens(first_space))
    own = tokenizers.Tokenizer.from_str(made_json(open_gguf(path).metadata))
    plain = [text.replace("▁", "").replace("<|im_end|>", "") for text in texts(60)]
    with llama_cpp(path) as other:
        assert [text for text in plain if text and own.encode(text).ids != other(text)] == []
    assert {own.decode(own.encode(text).ids) == text for text in plain if not text.startswith(" ")} == {True}


@pytest.mark.parametrize("pre", WORDS)
def test_the_boards_runtime_reads_what_was_made(tmp_path, pre):
    path = written(tmp_path, byte_level_tokens(pre))
    metadata = open_gguf(path).metadata
    tokenizer = Tokenizer(made_json(metadata))
    ids = tokenizer.encode(TEXT)
    assert b"".join(tokenizer.bytes_of(one) for one in ids).decode() == TEXT
    end = metadata["tokenizer.ggml.tokens"].index("<|im_end|>")
    assert tokenizer.encode("<|im_end|>") == [end]
    assert stop_ids(metadata) == [0, end], "the file names token 0 alone"
    template = chat_template(metadata, "model.gguf")
    assert template.text == "{{ messages }}" and "model.gguf" in template.source
    texts_of = metadata["tokenizer.ggml.tokens"]
    assert template.tokens == {"bos_token": "<|im_start|>", "eos_token": texts_of[0]}
