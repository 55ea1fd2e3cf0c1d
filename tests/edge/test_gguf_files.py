"""GGUF files: damaged or lying ones are refused in one message; tokenizers made of their lists give llama.cpp's ids."""

import contextlib
import json
import random
import struct
import tracemalloc
import unicodedata
import urllib.request

import pytest
import sample_gguf as sample
import tokenizers
import transformers
from mutations import fuzz, mutated_bytes, taken
from tokenizers import models, pre_tokenizers, trainers

from merino_edge.cli.app import main
from merino_edge.families.gguf.checkpoint import read_gguf
from merino_edge.families.gguf.config import config_of
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
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import Tokenizer

TINY = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 24, "max_position_embeddings": 32}  # fmt: skip
MIB = 2**20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return sample.write_gguf(path, sample.random_model("llama", **TINY))


def written(tmp_path, **keys):
    return sample.write_gguf(tmp_path / "tiny.gguf", sample.random_model("llama", **TINY), **keys)


def refused(path, match):
    with pytest.raises(MerinoError, match=match) as raised:
        read_gguf(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(whole, tmp_path):
    """At each byte of the header, and at some of the tensors."""
    data, path = whole.read_bytes(), tmp_path / "cut.gguf"
    header = min(place.offset for place in open_gguf(whole).tensors.values())
    for size in [*range(header), *range(header, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(MerinoError, match=r"cut short: it has [\d,]+ bytes|does not begin with GGUF"):
            open_gguf(path)
    path.write_bytes(data)
    assert set(open_gguf(path).tensors) == set(open_gguf(whole).tensors)


@pytest.mark.more
def test_a_changed_file_is_read_or_refused_and_nothing_else(whole, tmp_path):
    """The header is changed in each case, since that is where a file can lie."""
    data, path = whole.read_bytes(), tmp_path / "changed.gguf"
    header = min(place.offset for place in open_gguf(whole).tensors.values())

    def changed(chance):
        head = bytearray(data[:header])
        for _ in range(chance.choice([0, 1, 1, 2, 4])):
            at, length = chance.randrange(header), chance.choice([1, 1, 2, 4, 8])
            value = chance.choice([0, 1, 2, 8, 255, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1])
            head[at : at + length] = value.to_bytes(8, "little")[:length]
        return mutated_bytes(chance, bytes(head[:header])) + data[header:]

    def use(content):
        path.write_bytes(content)
        return taken(read_gguf, path)

    fuzz(changed, use)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what, match", [
    ("big-endian", "it is big-endian, and little-endian files are read, as gguf_convert_endian.py"),
    ("version 1", "its version is 1, known are 2 and 3"),
    ("tensors", r"its header counts 18,446,744,073,709,551,615 tensors, allowed are 65,536"),
    ("keys", r"its header counts 1,099,511,627,776 keys, allowed are 65,536"),
    ("type", "is of type 99, which the installed package gguf does not know"),
    ("offset", "ends at|lies over another|no multiple of 32"),
])  # fmt: skip
def test_a_header_that_lies_is_refused_with_what_it_says(whole, tmp_path, what, match):
    data = bytearray(whole.read_bytes())
    if what == "big-endian":
        data[4:8] = struct.pack(">I", 3)
    elif what == "version 1":
        data[4:8] = struct.pack("<I", 1)
    elif what == "tensors":
        data[8:16] = struct.pack("<Q", 2**64 - 1)
    elif what == "keys":
        data[16:24] = struct.pack("<Q", 2**40)
    else:
        name = b"output_norm.weight"
        at = data.index(name) + len(name) + 4 + 8  # behind the number of axes and the one axis: type, offset
        if what == "type":
            data[at : at + 4] = struct.pack("<I", 99)
        else:
            data[at + 4 : at + 12] = struct.pack("<Q", 2**40)
    path = tmp_path / "lies.gguf"
    path.write_bytes(bytes(data))
    refused(path, match)


@pytest.mark.parametrize("keys, match", [
    ({"llama.block_count": 2}, "lacks 'blk.1.attn_q.weight', which the model it describes has|lacks 'blk.1"),
    ({"llama.block_count": 10**6}, "describes 1,000,000 layers and has 11 tensors"),
    ({"llama.embedding_length": 64, "llama.attention.key_length": 16}, r"has the shape \[24, 32\], its metadata"),
    ({"llama.feed_forward_length": 48}, r"ffn_\w+.weight has the shape .*, its metadata describes"),
    ({"llama.attention.head_count": None}, "llama.attention.head_count is missing, allowed is an integer above 0"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon is nan, allowed is a number above 0"),
    ({"llama.context_length": "long"}, "llama.context_length is 'long', allowed is an integer"),
    ({"llama.attention.head_count": [1, 2]}, r"head_count is \[1, 2\]: exported are models of equal layers"),
    ({"llama.rope.dimension_count": 8}, "variant of llama .*: partial_rotary_factor is 0.5, supported is 1"),
    ({"llama.expert_count": 8}, "a variant of llama that is not exported: llama.expert_count is 8"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "rope.scaling.type is 'yarn'"),
    ({"llama.rope.scaling.attn_factor": 1.25}, "not exported: llama.rope.scaling.attn_factor is 1.25"),
    ({"llama.attention.causal": False}, "not exported: llama.attention.causal is False"),
    ({"llama.attention.scale": 0.5, "llama.new": "x"}, "llama.attention.scale is 0.5; llama.new is 'x'"),
    ({"general.alignment": 12}, "general.alignment is 12, allowed is a power of 2"),
    ({"split.count": 3}, "is one part of several: join them with `llama-gguf-split --merge`"),
    ({"tokenizer.ggml.pre": "unheard-of"}, "tokenizer.ggml.pre is 'unheard-of', known are gpt-2, .*smollm.*folder"),
    ({"tokenizer.ggml.model": "bert"}, "the GGUF's tokenizer is 'bert', known are gpt2, llama"),
    ({"tokenizer.ggml.eos_token_id": 24}, "eos_token_id is 24, allowed are 0 to 23"),
])  # fmt: skip
def test_metadata_that_cannot_be_is_refused_with_key_and_value(tmp_path, keys, match):
    late = {key: value for key, value in keys.items() if key.startswith(("tokenizer", "general"))}
    early = {key: value for key, value in keys.items() if key not in late}

    def tokens(writer, vocab):
        sample.made_up_tokens(writer, vocab)
        for key, value in late.items():
            writer.kv_data[0].pop(key, None)
            sample.add_key(writer, key, value)

    refused(written(tmp_path, tokenizer=tokens, **early), match)


@pytest.mark.parametrize("scaling", [
    {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0}, {"llama.rope.scaling.factor": 1.0},
    {"llama.rope.scaling.type": "linear", "llama.rope.scale_linear": 1.0, "llama.rope.scaling.attn_factor": 1.0},
])  # fmt: skip
def test_keys_that_change_nothing_are_read_over(tmp_path, scaling):
    path = written(tmp_path, **scaling, **{"llama.attention.causal": True, "llama.expert_count": 0})
    assert config_of(open_gguf(path))["rope_parameters"]["rope_type"] == "default"


@pytest.mark.parametrize("size", [4, pytest.param(64, marks=pytest.mark.nightly)])
def test_a_header_of_many_mb_takes_little_more_memory_than_that(whole, size, tmp_path, monkeypatch):
    """And no lists can be hidden behind each other: their entries are counted together. size: MB of 2^20 bytes."""
    most = size * MIB // 16
    monkeypatch.setattr("merino_edge.families.gguf.file.MOST_ENTRIES", most)
    data = whole.read_bytes()
    tensors, keys = struct.unpack_from("<QQ", data, 8)

    def with_lists(count, kind, entries):
        lists = b"".join(
            struct.pack("<Q4sIIQ", 4, b"%04d" % index, 9, kind, len(entries) // {0: 1, 8: 9}[kind]) + entries
            for index in range(count)
        )  # fmt: skip
        return data[:8] + struct.pack("<QQ", tensors, keys + count) + lists + data[24:]

    path = tmp_path / "large.gguf"
    for count, kind, entries in ((16, 0, bytes(most)), (16, 8, (struct.pack("<Q", 1) + b"x") * (most // 8))):
        path.write_bytes(with_lists(count, kind, entries))
        assert path.stat().st_size > size * MIB
        tracemalloc.start()
        with pytest.raises(MerinoError, match=rf"lists up to '\d+' have [\d,]+ entries, allowed are {most:,}"):
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * size * MIB, peak


def test_an_architecture_and_a_tokenizer_that_are_not_there(tmp_path):
    refused(written(tmp_path, tokenizer=lambda *_: None), "tokenizer.ggml.model is missing, allowed is one of gpt2")
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "other.gguf").write_bytes(data.replace(b"llama", b"mamba", 1))
    refused(tmp_path / "other.gguf", "of architecture 'mamba': exported are llama, qwen2")
    (tmp_path / "text.gguf").write_bytes(b"no model at all")
    refused(tmp_path / "text.gguf", "it does not begin with GGUF")


def test_weights_larger_than_the_memory_are_refused_before_they_are_read(whole, tmp_path, monkeypatch, capsys):
    """With both figures."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 2 * MIB})())
    monkeypatch.setattr("merino_edge.families.gguf.checkpoint.filled", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(SystemExit) as ended:
        main(["export", str(whole), "-o", str(tmp_path / "out")])
    assert ended.value.code == 1 and not (tmp_path / "out").exists()
    output = capsys.readouterr().err
    assert "exporting tiny.gguf needs about" in output and "2 MB are available" in output


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
BY_DAY = {"gpt-2", "llama-bpe", "qwen2", "smollm"}


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


def model_file(tmp_path, tokens):
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
@pytest.mark.parametrize("pre", [
    name if name in BY_DAY else pytest.param(name, marks=pytest.mark.nightly)
    for name in WORDS if name not in NOT_IN_LLAMA_CPP
])  # fmt: skip
def test_words_are_cut_as_llama_cpp_cuts_them(tmp_path, pre):
    path = model_file(tmp_path, byte_level_tokens(pre))
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
    path = model_file(tmp_path, sentence_piece_tokens(False, GEMMA))
    described = made_json(open_gguf(path).metadata)
    own, board = tokenizers.Tokenizer.from_str(described), Tokenizer(described)
    with llama_cpp(path) as other:
        assert [text for text in spaced(80) if own.encode(text).ids != other(text)] == []
    for text in spaced(80):
        ids = board.encode(text)
        assert ids == own.encode(text).ids and b"".join(map(board.bytes_of, ids)).decode() == text


def test_qwens_texts_are_composed_as_its_own_tokenizer_composes_them(tmp_path):
    """llama.cpp leaves e and an accent apart, which Qwen's tokenizer.json (NFC) does not: the model learned from the
    latter."""
    metadata = open_gguf(model_file(tmp_path, byte_level_tokens("qwen2"))).metadata
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
    path = model_file(tmp_path, sentence_piece_tokens(first_space))
    own = tokenizers.Tokenizer.from_str(made_json(open_gguf(path).metadata))
    plain = [text.replace("▁", "").replace("<|im_end|>", "") for text in texts(60)]
    with llama_cpp(path) as other:
        assert [text for text in plain if text and own.encode(text).ids != other(text)] == []
    assert {own.decode(own.encode(text).ids) == text for text in plain if not text.startswith(" ")} == {True}


@pytest.mark.parametrize("pre", WORDS)
def test_the_boards_runtime_reads_what_was_made(tmp_path, pre):
    path = model_file(tmp_path, byte_level_tokens(pre))
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
