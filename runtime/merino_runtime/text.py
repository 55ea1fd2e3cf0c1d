"""Text to ids and ids to text, for byte-level BPE as in GPT-2. Knows nothing of models.

Tokens are decoded to bytes, because a token may end inside a UTF-8 character and a stream shows whole characters only.
`tokenizers` is imported when a tokenizer is opened.
"""
import codecs
import json
from typing import Any, Dict, List, Sequence, Tuple

from merino_runtime.bundle import Bundle, file_path
from merino_runtime.errors import MerinoError
from merino_runtime.json_file import JSON, read_text, value_of
from merino_runtime.requirements import require


def byte_table() -> Dict[str, int]:
    """GPT-2's alphabet, character -> byte. Printable characters of Latin-1 map to their own byte; the other 68 bytes
    have U+0100 and following, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


BYTE_OF = byte_table()
LONGEST_TEXT_BYTES = 2 ** 20  # a word of so many takes 1 to 2 s on x86, and no context of ours holds so much text
REMEDY = "Copy or export the bundle again."


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
        _check_byte_level(parsed, source)
        self._tokenizer = _tokenizer_of(_with_merges_as_strings(parsed, description), source)
        # A prompt is never cut or filled up silently, whatever the file says.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Added tokens are spelled in plain text, not in the byte alphabet. Special ones (<|endoftext|>) have no text.
        self._source = source
        self._added: Dict[int, bytes] = {
            token["id"]: b"" if token["special"] else token["content"].encode("utf-8")
            for token in parsed.get("added_tokens", ())}

    def encode(self, text: str) -> List[int]:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise MerinoError(f"the prompt has a lone surrogate at character {error.start}, which UTF-8 cannot encode. "
                              "Pass valid UTF-8.") from error
        if size > LONGEST_TEXT_BYTES:
            raise MerinoError(f"the prompt has {size:,} bytes, allowed are {LONGEST_TEXT_BYTES:,}. Shorten it.")
        try:
            return list(self._tokenizer.encode(text).ids)
        except Exception as error:  # tokenizers raises bare Exception
            raise MerinoError(f"{self._source} cannot encode the prompt: {error}. {REMEDY}") from error

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token, perhaps not whole characters. Empty for an id past the tokenizer's vocabulary, which
        a model has if its own is padded."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else b"".join(
            bytes([BYTE_OF[char]]) if char in BYTE_OF else char.encode("utf-8") for char in token)


class TextStream:
    """Turns ids into text. Withholds incomplete characters, and a tail that may be the beginning of a stop string.

    The first complete stop string ends the stream. Neither it nor what follows is returned.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        check_stops(stops)
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # withheld: the beginning of a possible stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        return self._give(self._utf8.decode(self._tokenizer.bytes_of(token_id)))

    def finish(self) -> str:
        """The withheld text. An incomplete character becomes U+FFFD."""
        text = self._give(self._utf8.decode(b"", final=True))
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _give(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = _first_stop(text, self._stops)
        self.stopped = found >= 0
        sure = found if self.stopped else len(text) - _tail_to_hold(text, self._stops)
        self._held = "" if self.stopped else text[sure:]
        return text[:sure]


def check_stops(stops: Sequence[str]) -> None:
    if any(not isinstance(stop, str) or not stop for stop in stops):
        raise MerinoError(f"a stop string is empty or not a string ({list(stops)!r}). "
                          "Omit it or give at least one character.")


def _first_stop(text: str, stops: Sequence[str]) -> int:
    """Start of the stop string that *ends* first, -1 if there is none. The end decides, so that the result does not
    depend on where token boundaries lie."""
    places = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return min(places)[1] if places else -1


def _tail_to_hold(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of text that is a prefix of a stop string."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    return next((length for length in range(longest, 0, -1)
                 if any(stop.startswith(text[-length:]) for stop in stops)), 0)


def _check_byte_level(parsed: Any, source: str) -> None:
    found = _types_in(parsed, "model"), _types_in(parsed, "decoder")
    if "BPE" not in found[0] or "ByteLevel" not in found[1]:
        raise MerinoError(
            f"{source} is not a byte-level BPE (model: {', '.join(found[0]) or 'none'}; decoder: "
            f"{', '.join(found[1]) or 'none'}). Only a BPE model with the ByteLevel decoder is supported: "
            "train or convert the tokenizer to that form and export again.")


def _types_in(parsed: Any, part: str) -> Tuple[str, ...]:
    """The type of a part of tokenizer.json; of a Sequence, the types of its members."""
    described = parsed.get(part) if isinstance(parsed, dict) else None
    if not isinstance(described, dict):
        return ()
    inner = described.get("decoders", [described])
    if not isinstance(inner, list):
        return ()
    # Old versions of tokenizers omit the model's type. A model with merges is a BPE.
    return tuple(str(one.get("type") or ("BPE" if "merges" in one else "unnamed")) for one in inner
                 if isinstance(one, dict))


def _with_merges_as_strings(parsed: Dict[str, Any], description: str) -> str:
    """Rewrites merges from ["a", "b"] (tokenizers 0.20 and later) to "a b", the only form that 0.12 reads, the last
    version for Python 3.6. All versions read it, and it is unambiguous: a byte-level token contains no space. A
    description without such merges is returned as it is, because serialising 50,000 entries slows every start."""
    model = parsed["model"]
    merges = model.get("merges")
    if not isinstance(merges, list) or all(isinstance(merge, str) for merge in merges):
        return description
    if not all(isinstance(merge, list) and all(isinstance(part, str) for part in merge) for merge in merges):
        return description  # wrong in another way, which tokenizers says
    model["merges"] = [" ".join(merge) for merge in merges]
    try:
        return json.dumps(parsed)
    except RecursionError:  # nested deeper than tokenizers reads, which it says
        return description


def _tokenizer_of(description: str, source: str) -> Any:
    tokenizers = require("tokenizers")
    try:
        return tokenizers.Tokenizer.from_str(description)
    except Exception as error:  # tokenizers raises bare Exception
        raise MerinoError(f"tokenizers {tokenizers.__version__} cannot read {source}: {error}. Install a "
                          "newer tokenizers, or export the bundle again.") from error
