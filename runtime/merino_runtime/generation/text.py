"""Converts text to ids and ids to text, for byte-level BPE (GPT-2), and for BPE of characters with byte fallback
(SentencePiece).

Tokens are decoded to bytes, because a token may end inside a UTF-8 character, and a stream shows only whole characters.
`tokenizers` is imported when a tokenizer is opened.
"""
import codecs
import json
import re
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

from merino_runtime.bundle import Bundle, file_path
from merino_runtime.bundle.requirements import require, version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import JSON, read_text, value_of


def byte_table() -> Dict[str, int]:
    """Return GPT-2's alphabet, character -> byte. Printable characters of Latin-1 map to their own byte; the other 68
    bytes have U+0100 and following, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


BYTE_OF = byte_table()
LONGEST_TEXT_BYTES = 2 ** 20  # a word of this length takes 1 to 2 s on x86, and no context holds so much text
MOST_WORDS = 1000  # size of the tokenizer's word cache; its default of 10,000 takes megabytes in a server
REMEDY = "Copy or export the bundle again."
FIRST_WITH_BYTE_FALLBACK = (0, 13, 3)
SPACE = "\u2581"  # replaces a space in SentencePiece vocabularies
BREAKERS = (b"\n", b":", b'"', b"*")  # end a sequence for DRY, as in llama.cpp
SHOWN = ("<think>", "</think>")  # special tokens in some tokenizers, but part of an answer's text


def open_tokenizer(bundle: Bundle) -> "Tokenizer":
    path = file_path(bundle, "tokenizer.json")
    if path is None:
        raise MerinoError(
            f"bundle {bundle.name!r} has no tokenizer.json (weights: {bundle.weights}), so it cannot read or write "
            "text. `bench` and `selftest` work without it. To generate text, export a trained checkpoint.")
    return Tokenizer(read_text(path, JSON, REMEDY), path)


class Tokenizer:
    def __init__(self, description: str, source: str = "tokenizer.json") -> None:
        """description: the text of a tokenizer.json. source: its name in error messages."""
        try:
            parsed = value_of(description, any_depth=True)
        except ValueError as error:
            raise MerinoError(f"{source} is not {JSON}: {error}. {REMEDY}") from error
        self._byte_level = _is_byte_level(parsed, source)
        if not self._byte_level:
            _check_bytes_are_known(source)
        self.drops_first_space = not self._byte_level and _drops_first_space(parsed)
        self._description = with_merges_as_strings(parsed, description)
        self._tokenizer, self._source = _tokenizer_of(self._description, source), source
        self._plain: Optional[Any] = None  # the same without added tokens, made when a text needs it
        self.kept: Dict[str, Any] = {}  # objects that other modules derive from this tokenizer once
        added = parsed.get("added_tokens", ())
        # Added tokens are spelled in plain text, not in the byte alphabet. Special ones (<|endoftext|>) have no text.
        self._added: Dict[int, bytes] = {
            token["id"]: b"" if token["special"] and token["content"] not in SHOWN else token["content"].encode("utf-8")
            for token in added}
        self._marks = frozenset(token["id"] for token in added if token["special"] or token["content"] in SHOWN)

    def breakers(self) -> FrozenSet[int]:
        """Return the ids of tokens whose text has a character of BREAKERS. They are computed once."""
        if "breakers" not in self.kept:
            self.kept["breakers"] = frozenset(token_id for token_id, text in enumerate(self.spellings())
                                              if any(mark in text for mark in BREAKERS))
        found: FrozenSet[int] = self.kept["breakers"]
        return found

    def encode(self, text: str, begins: bool = True) -> List[int]:
        """Encode a prompt; the text of a special token becomes that token. begins: add the tokenizer's prefix, such as
        a beginning-of-text token. Its suffix is left out, because the model continues the text."""
        return self._ids(text, begins)

    def encode_pieces(self, pieces: Sequence[Tuple[str, bool]]) -> List[int]:
        """Encode a conversation of (text, whether special tokens count in it), without prefix and suffix.

        If special tokens do not count in a text, one that it spells becomes the tokens of its letters. If no text
        spells one, the ids are those of the joined texts."""
        whole = self._ids("".join(text for text, _ in pieces))
        allowed = [mark for text, own in pieces if own for mark in self._marks_in(self._ids(text))]
        if self._marks_in(whole) == allowed:
            return whole
        return [token_id for text, own in pieces for token_id in (self._ids(text) if own else self._plain_ids(text))]

    def _marks_in(self, ids: Sequence[int]) -> List[int]:
        return [token_id for token_id in ids if token_id in self._marks]

    def _plain_ids(self, text: str) -> List[int]:
        ids = self._ids(text)
        if not self._marks_in(ids):
            return ids
        if self._plain is None:
            described = value_of(self._description, any_depth=True)
            described.update(added_tokens=[], post_processor=None)
            self._plain = _tokenizer_of(json.dumps(described), self._source)
        ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        if self._marks_in(ids):  # its model has the token's name as a word of its own
            raise MerinoError(f"the text holds a special token of the model, which {self._source} cannot spell in "
                              "letters. Write it in another way.")
        return ids

    def _ids(self, text: str, begins: bool = False) -> List[int]:
        if not isinstance(text, str):
            raise MerinoError(f"a text is {text!r:.80}, allowed is a string. Decode bytes first.")
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise MerinoError(f"the text has a lone surrogate at character {error.start}, which UTF-8 cannot encode. "
                              "Pass valid UTF-8.") from error
        if size > LONGEST_TEXT_BYTES:
            raise MerinoError(f"the text has {size:,} bytes, allowed are {LONGEST_TEXT_BYTES:,}. Shorten it.")
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=begins)
            ids = list(encoding.ids)
            while begins and ids and encoding.special_tokens_mask[len(ids) - 1]:  # of the post-processor, not the text
                ids.pop()
            return ids
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise MerinoError(f"{self._source} cannot encode the text: {error}. {REMEDY}") from error

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be incomplete characters. Empty for an id past the tokenizer's
        vocabulary, which a model with a padded vocabulary has."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._bytes_of(token)

    def spellings(self) -> List[bytes]:
        """Return the bytes of all tokens by id, empty for special tokens and for marks of thinking."""
        by_id = {token_id: token for token, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        spellings = [b""] * (max(by_id, default=-1) + 1)
        for token_id, token in by_id.items():
            if token_id not in self._marks:
                spellings[token_id] = self._added[token_id] if token_id in self._added else self._bytes_of(token)
        return spellings

    def _bytes_of(self, token: str) -> bytes:
        if self._byte_level:
            return b"".join(bytes([BYTE_OF[char]]) if char in BYTE_OF else char.encode("utf-8") for char in token)
        byte = re.match(r"<0x([0-9A-F]{2})>\Z", token)
        return bytes([int(byte.group(1), 16)]) if byte else token.replace(SPACE, " ").encode("utf-8")


def _is_of_tokenizers(error: BaseException) -> bool:
    """Return whether tokenizers raised the error: it raises bare Exception, and if its Rust code panics, no Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class TextStream:
    """Converts ids to text. Withholds incomplete characters, and a tail that may be the beginning of a stop string.

    The first complete stop string ends the stream. Neither it nor the text behind it is returned. begins: the text
    continues no other text, so a space that the tokenizer put before it is left out.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), begins: bool = False) -> None:
        if not isinstance(stops, (list, tuple)) or any(not isinstance(stop, str) or not stop for stop in stops):
            raise MerinoError(f"stops are {stops!r:.80}, allowed is a list of strings, each a stop string of at least "
                              "one character.")
        self._drops_space = begins and tokenizer.drops_first_space
        self.tokenizer = tokenizer
        self._stops = tuple(stops)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._withheld = ""  # the beginning of a possible stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        data = self.tokenizer.bytes_of(token_id)
        if data and self._drops_space:
            self._drops_space = False
            data = data[1:] if data.startswith(b" ") else data
        return self._release(self._utf8.decode(data))

    def finish(self) -> str:
        """Return the withheld text. An incomplete character becomes U+FFFD."""
        text = self._release(self._utf8.decode(b"", final=True))
        if self.stopped:
            return text
        text, self._withheld = text + self._withheld, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._withheld + text
        # The stop string that *ends* first counts, so that token boundaries do not change the result.
        ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stops if stop in text]
        self.stopped = bool(ends)
        sure = min(ends)[1] if ends else len(text) - tail_to_hold(text, self._stops)
        self._withheld = "" if ends else text[sure:]
        return text[:sure]


def tail_to_hold(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest suffix of text that is a prefix of a stop string."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    return next((length for length in range(longest, 0, -1)
                 if any(stop.startswith(text[-length:]) for stop in stops)), 0)


def _is_byte_level(parsed: Any, source: str) -> bool:
    """Return whether the BPE is byte-level instead of one with byte fallback. Raise MerinoError for any other kind."""
    kinds = _types_in(parsed, "model"), _types_in(parsed, "decoder")
    if "BPE" not in kinds[0] or not {"ByteLevel", "ByteFallback"} & set(kinds[1]):
        raise MerinoError(
            f"{source} is not a byte-level BPE (model: {', '.join(kinds[0]) or 'none'}; decoder: "
            f"{', '.join(kinds[1]) or 'none'}). Only a BPE model with the decoder ByteLevel or ByteFallback is "
            "supported: train or convert the tokenizer to that form and export again.")
    return "ByteLevel" in kinds[1]


def _drops_first_space(parsed: Any) -> bool:
    """Return whether the decoder of a whole text leaves out a space at its beginning."""
    decoders = parsed["decoder"].get("decoders", [parsed["decoder"]])
    return any(part.get("type") == "Strip" and part.get("content") == " " and part.get("start") == 1
               or part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never"
               and part.get("add_prefix_space", True) for part in decoders)


def _types_in(parsed: Any, part: str) -> Tuple[str, ...]:
    """Return the type of a part of tokenizer.json; for a Sequence, the types of its members."""
    described = parsed.get(part) if isinstance(parsed, dict) else None
    if not isinstance(described, dict):
        return ()
    inner = described.get("decoders", [described])
    if not isinstance(inner, list):
        return ()
    # Old versions of tokenizers omit the model's type. A model with merges is a BPE.
    return tuple(str(part.get("type") or ("BPE" if "merges" in part else "unnamed")) for part in inner
                 if isinstance(part, dict))


def with_merges_as_strings(parsed: Dict[str, Any], description: str) -> str:
    """Rewrite merges from ["a", "b"] (tokenizers 0.20 and later) to "a b", the only form that 0.12 reads, the last
    version for Python 3.6. All versions read it, unless a token contains a space, which no published one does. Other
    descriptions are returned as they are. `export` does this, since 150,000 merges take as long as the rest of a start.
    """
    model = parsed["model"]
    merges = model.get("merges")
    if not isinstance(merges, list) or all(isinstance(merge, str) for merge in merges):
        return description
    if not all(isinstance(merge, list) and all(isinstance(part, str) for part in merge) for merge in merges):
        return description  # wrong in another way, which tokenizers reports
    if any(" " in part for merge in merges for part in merge):
        return description
    model["merges"] = [" ".join(merge) for merge in merges]
    try:
        return json.dumps(parsed, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:  # nested deeper than tokenizers reads, which it reports
        return description


def _check_bytes_are_known(source: str) -> None:
    """Raise MerinoError for a version of tokenizers without byte fallback. It would encode characters that the
    vocabulary lacks as one unknown token."""
    version = require("tokenizers").__version__
    if version_tuple(version) < FIRST_WITH_BYTE_FALLBACK:
        raise MerinoError(f"tokenizers is {version}, and {source} has bytes for what its vocabulary lacks, which needs "
                          f"{'.'.join(map(str, FIRST_WITH_BYTE_FALLBACK))} or later, and with it Python 3.7. Use a "
                          "newer Python, or a model with a byte-level BPE.")


def _tokenizer_of(description: str, source: str) -> Any:
    tokenizers = require("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(description)
    except BaseException as error:
        if not _is_of_tokenizers(error):
            raise
        raise MerinoError(f"tokenizers {tokenizers.__version__} cannot read {source}: {error}. Install a "
                          "newer tokenizers, or export the bundle again.") from error
    if hasattr(tokenizer.model, "_resize_cache"):  # from tokenizers 0.21 on
        tokenizer.model._resize_cache(MOST_WORDS)
    # A prompt is never cut or filled up silently, whatever the file requires.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
