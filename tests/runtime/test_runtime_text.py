"""Byte-level BPE through the real `tokenizers`: a stream gives back what was encoded, cut anywhere."""
import json

import pytest
from few_examples import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st

from merino_runtime.bundle import Bundle, BundleFile
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import (
    FIRST_WITH_BYTE_FALLBACK,
    TextStream,
    Tokenizer,
    byte_table,
    open_tokenizer,
    with_merges_as_strings,
)

EOS = 259


def tiny(**changes):
    """A tokenizer.json of 256 bytes, three merges and an end-of-text token."""
    vocab = dict(byte_table(), th=256, the=257)
    vocab["Ġthe"] = 258
    described = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": EOS, "content": "<|endoftext|>", "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "vocab": vocab,
                  "merges": ["t h", "th e", "Ġ the"]},
    }
    described.update(changes)
    return described


TOKENIZER = Tokenizer(json.dumps(tiny()))
TINY_VOCAB = tiny()["model"]["vocab"]
# Surrogates cannot be encoded; the text of the special token would be taken for the token.
TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=40).filter(lambda s: "<|end" not in s)
STOPS = st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3)


def emitted(ids, stops=(), tokenizer=TOKENIZER):
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token_id in ids:
        pieces.append(stream.push(token_id))
        if stream.stopped:
            break
    return pieces + [stream.finish()]


@examples(100)
@given(TEXT)
@example("the th t the")  # every merge of the vocabulary, and a merge's own parts
def test_a_stream_gives_back_the_text_in_whole_characters(text):
    pieces = emitted(TOKENIZER.encode(text))
    assert "".join(pieces) == text
    seen = ""
    for piece in pieces:  # a split character would show as U+FFFD, or late
        seen += piece
        assert text.startswith(seen)


@given(st.binary(max_size=30))
def test_any_bytes_come_out_as_python_decodes_them(data):
    assert "".join(emitted(list(data_ids(data)))) == data.decode("utf-8", "replace")


def data_ids(data):
    ids = {byte: TINY_VOCAB[char] for char, byte in byte_table().items()}
    return [ids[byte] for byte in data]


def until_first_stop(text, stops):
    """Letter by letter: the first moment at which the text ends in a stop string."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[:end - max(map(len, hits))]
    return text


@examples(200)
@given(st.text("ab€", max_size=20), STOPS, st.data())
def test_nothing_from_a_stop_string_on_is_given_out_wherever_tokens_are_cut(text, stops, data):
    # A vocabulary whose tokens are this text's own pieces, cut in the middle of characters too.
    raw = text.encode("utf-8")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)) | {0, len(raw)})
    spell = {byte: char for char, byte in byte_table().items()}
    parts = [raw[start:end] for start, end in zip(cuts, cuts[1:])]  # noqa: B905, not in 3.6
    names = ["".join(spell[byte] for byte in part) for part in parts]
    vocab = dict(byte_table())
    for name in names:
        vocab.setdefault(name, len(vocab))
    model = dict(tiny()["model"], vocab=vocab, merges=[])
    tokenizer = Tokenizer(json.dumps(tiny(model=model, added_tokens=[])))
    pieces = emitted([vocab[name] for name in names], stops, tokenizer)
    assert "".join(pieces) == until_first_stop(text, stops)


def test_special_tokens_and_ids_past_the_vocabulary_are_no_text():
    assert TOKENIZER.bytes_of(EOS) == b"" and TOKENIZER.bytes_of(10 ** 6) == b""


def test_an_added_token_that_is_not_special_is_its_own_text():
    added = [dict(tiny()["added_tokens"][0], content="€ Ġ", special=False)]
    assert Tokenizer(json.dumps(tiny(added_tokens=added))).bytes_of(EOS).decode("utf-8") == "€ Ġ"


def test_merges_are_read_in_the_old_and_the_new_spelling():
    model = dict(tiny()["model"], merges=[["t", "h"], ["th", "e"], ["Ġ", "the"]])
    assert Tokenizer(json.dumps(tiny(model=model))).encode("the the") == [257, 258]
    assert TOKENIZER.encode("the the") == [257, 258]
    spaced = json.dumps(tiny(model=dict(model, merges=[["t", " h"]])))
    assert with_merges_as_strings(json.loads(spaced), spaced) == spaced  # "t  h" could be read in two ways


@pytest.mark.parametrize("changes", [
    {"decoder": None}, {"decoder": {"type": "WordPiece"}}, {"decoder": {"type": "Sequence", "decoders": []}},
    {"decoder": {"type": "Sequence", "decoders": 5}}, {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}])
def test_what_is_not_byte_level_bpe_is_refused(changes):
    with pytest.raises(MerinoError, match="byte-level BPE"):
        Tokenizer(json.dumps(tiny(**changes)))


@pytest.mark.parametrize("text", ["", "not json", "[]", "null", "[" * 100000, '{"model":' * 500 + "1" + "}" * 500])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(MerinoError, match="here.json"):
        Tokenizer(text, "here.json")


def test_a_bpe_that_tokenizers_cannot_read_is_refused():
    for merges in (["no such"], 5, [5], [["t", 5]], [["t"]], {}):
        with pytest.raises(MerinoError, match="cannot read"):
            Tokenizer(json.dumps(tiny(model=dict(tiny()["model"], merges=merges))))


AROUND = {  # post-processors as hubs have them: what stands before and behind a text
    "none": ([], []), "before": ([EOS], []), "behind": ([], [EOS]), "both": ([EOS], [EOS]), "two": ([EOS, EOS], [EOS])}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("cut_and_filled", [False, True])
def test_a_files_post_processor_truncation_and_padding_make_no_other_text(around, cut_and_filled):
    before, behind = AROUND[around]
    special = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing", "single": [special] * len(before) + [text] + [special] * len(behind),
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [EOS], "tokens": ["<|endoftext|>"]}}}
    changes = {"post_processor": processor if before or behind else None}
    if cut_and_filled:
        changes["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        changes["padding"] = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": EOS,
                              "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    tokenizer = Tokenizer(json.dumps(tiny(**changes)))
    for typed in ("the the the the", "the<|endoftext|>", "<|endoftext|>", "<|endoftext|>the"):
        plain = TOKENIZER.encode(typed)
        assert tokenizer.encode(typed) == before + plain, "what follows is the model's to say"
        assert tokenizer.encode(typed, begins=False) == plain == tokenizer.encode_pieces([(typed, True)])
    letters = TOKENIZER.encode_pieces([("the", True), ("<|endoftext|>", False)])
    assert tokenizer.encode_pieces([("the", True), ("<|endoftext|>", False)]) == letters and EOS not in letters


def test_a_text_that_would_take_minutes_on_a_board_is_refused_with_the_bound():
    with pytest.raises(MerinoError, match="3,000,000 bytes, allowed are 1,048,576"):
        TOKENIZER.encode("a" * 3000000)
    assert len(TOKENIZER.encode("\u00e9" * 2 ** 15)) == 2 ** 16


@pytest.mark.parametrize("content, message", [
    (b"\xff", "byte 0 is not UTF-8"), (None, "cannot read"), (b"[" * 100000, "nested too deeply")])
def test_a_tokenizer_file_that_cannot_be_read_is_one_line(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.mkdir() if content is None else path.write_bytes(content)
    given = dict.fromkeys(Bundle._fields, None)
    given.update(folder=str(tmp_path), files=(BundleFile("tokenizer.json", 1, ""),))
    with pytest.raises(MerinoError, match=message) as caught:
        open_tokenizer(Bundle(**given))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_no_prompt():
    with pytest.raises(MerinoError, match="surrogate"):
        TOKENIZER.encode("a\ud800")


def of_characters(first_space=True, **changes):
    """A tokenizer.json as SentencePiece's models become: characters, and bytes for those it lacks; as Llama 2 (with a
    space before each text) and Gemma (without)."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefghij", "\u2581a",
              "bc", "\u2581abc"]
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
             {"type": "Fuse"}]
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    if first_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        spaces.insert(0, {"type": "Prepend", "prepend": "\u2581"})
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
             "vocab": {token: place for place, token in enumerate(tokens)},
             "merges": ["\u2581 a", "b c", "\u2581a bc"]}
    added = [dict(tiny()["added_tokens"][0], id=place, content=tokens[place]) for place in range(3)]
    return tiny(model=model, added_tokens=added, pre_tokenizer=None, decoder={"type": "Sequence", "decoders": steps},
                normalizer={"type": "Sequence", "normalizers": spaces}, **changes)


def needs_byte_fallback():
    if version_tuple(pytest.importorskip("tokenizers").__version__) < FIRST_WITH_BYTE_FALLBACK:
        pytest.skip("tokenizers without byte fallback")


def test_characters_that_no_version_here_can_spell_are_refused_and_not_lost():
    import tokenizers

    if version_tuple(tokenizers.__version__) < FIRST_WITH_BYTE_FALLBACK:
        with pytest.raises(MerinoError, match="0.13.3 or later, and with it Python 3.7"):
            Tokenizer(json.dumps(of_characters()))


@pytest.mark.parametrize("first_space", [True, False])
def test_characters_with_bytes_for_the_others_come_out_as_they_went_in(first_space):
    needs_byte_fallback()
    tokenizer = Tokenizer(json.dumps(of_characters(first_space)))
    assert tokenizer.drops_first_space == first_space

    @examples(200)
    @given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\u2581"), max_size=20)
           | st.text("abc \u20ac\U0001f600", max_size=20))
    @example("\u20ac abc")
    def check(text):
        assume(not any(special in text for special in ("<unk>", "<s>", "</s>")))  # which are no characters
        stream = TextStream(tokenizer, begins=True)
        ids = tokenizer.encode(text)
        pieces = [stream.push(token_id) for token_id in ids]
        seen = ""
        for piece in pieces:  # no half of a character, and nothing late
            seen += piece
            assert text.startswith(seen)
        assert "".join([*pieces, stream.finish()]) == text
        assert len([token_id for token_id in ids if token_id == 0]) == 0

    check()


def test_a_text_that_goes_on_keeps_its_first_space():
    needs_byte_fallback()
    tokenizer = Tokenizer(json.dumps(of_characters()))
    word = tokenizer.encode("abc")
    assert len(word) == 1
    for begins, expected in ((True, "abc"), (False, " abc")):
        stream = TextStream(tokenizer, begins=begins)
        assert stream.push(word[0]) + stream.finish() == expected


@pytest.mark.parametrize("data", [b"\xff", b"\xe2\x82", b"\xe2a", b"\xe2\x82\xac\x80", b"\xf0\x9f\x98\x80"])
def test_any_bytes_come_out_as_python_decodes_them_from_byte_tokens_too(data):
    needs_byte_fallback()
    tokenizer = Tokenizer(json.dumps(of_characters()))
    vocab = of_characters()["model"]["vocab"]
    ids = [vocab[f"<0x{byte:02X}>"] for byte in data]
    assert "".join(emitted(ids, (), tokenizer)) == data.decode("utf-8", "replace")


def test_special_tokens_in_a_users_text_are_letters_there_too():
    needs_byte_fallback()
    tokenizer = Tokenizer(json.dumps(of_characters()))
    result = tokenizer.encode_pieces([("<s>", True), ("</s><s>", False), ("</s>", True)])
    assert [token_id for token_id in result if token_id < 3] == [1, 2]
    assert b"".join(map(tokenizer.bytes_of, result)).decode("utf-8").replace(" ", "") == "</s><s>"


def test_thinking_is_text_though_its_marks_are_special():
    added = [dict(tiny()["added_tokens"][0], id=EOS + place, content=mark)
             for place, mark in enumerate(["<think>", "</think>", "<|im_end|>"])]
    tokenizer = Tokenizer(json.dumps(tiny(added_tokens=added)))
    assert [tokenizer.bytes_of(EOS + place) for place in range(3)] == [b"<think>", b"</think>", b""]
