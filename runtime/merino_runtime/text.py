"""Text to ids and ids to text, for byte-level BPE (GPT-2's form). Knows nothing of models.

Decoding works in bytes: a token may end in the middle of a UTF-8 character, and a stream must not show half
of one. `tokenizers` is imported when a tokenizer is opened.
"""
import codecs
import json
from typing import Any, Dict, List, Sequence, Tuple

from merino_runtime.bundle import Bundle, file_path
from merino_runtime.errors import MerinoError


def byte_table() -> Dict[str, int]:
    """GPT-2's alphabet: each byte as one printable character. The printable ones of Latin-1 stand for
    themselves, the other 68 follow one another from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


BYTE_OF = byte_table()


def open_tokenizer(bundle: Bundle) -> "Tokenizer":
    path = file_path(bundle, "tokenizer.json")
    if path is None:
        raise MerinoError(
            f"bundle {bundle.name!r} has no tokenizer.json (weights: {bundle.weights}), so it knows ids and "
            "no text. It can be measured (bench) and checked (selftest). To generate, export a trained "
            "checkpoint.")
    with open(path, encoding="utf-8") as file:
        return Tokenizer(file.read(), path)


class Tokenizer:
    def __init__(self, description: str, source: str = "tokenizer.json") -> None:
        """description: the text of a tokenizer.json; source: what to call it in errors."""
        try:
            parsed = json.loads(description)
        except ValueError as error:
            raise MerinoError(f"{source} is not JSON: {error}. Copy or export the bundle again.") from error
        _check_byte_level(parsed, source)
        self._tokenizer = _tokenizer_of(_with_merges_as_strings(parsed, description), source)
        # Added tokens stand outside the byte alphabet; the special ones (<|endoftext|>) are no text at all.
        self._added: Dict[int, bytes] = {
            token["id"]: b"" if token["special"] else token["content"].encode("utf-8")
            for token in parsed.get("added_tokens", ())}

    def encode(self, text: str) -> List[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise MerinoError(f"the prompt has half a surrogate pair at character {error.start}, which is no "
                              "text. Pass it as UTF-8.") from error
        return list(self._tokenizer.encode(text).ids)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for, perhaps not whole characters; none for one past the vocabulary
        (a model's may be padded)."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else b"".join(
            bytes([BYTE_OF[char]]) if char in BYTE_OF else char.encode("utf-8") for char in token)


class TextStream:
    """Ids in, text out as soon as it is sure: whole characters, and nothing that may begin a stop string.

    The stop string that is complete first ends the stream; it and what follows are never given out.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        check_stops(stops)
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # could still begin a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        return self._give(self._utf8.decode(self._tokenizer.bytes_of(token_id)))

    def finish(self) -> str:
        """What was held back. An unfinished character becomes U+FFFD."""
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
        raise MerinoError(f"a stop string is empty or no string ({list(stops)!r}): it would stop at once. "
                          "Leave it out or give at least one character.")


def _first_stop(text: str, stops: Sequence[str]) -> int:
    """Where the stop string begins that *ends* first, -1 where none is. The end decides, so that the answer
    does not depend on where tokens are cut."""
    places = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return min(places)[1] if places else -1


def _tail_to_hold(text: str, stops: Sequence[str]) -> int:
    """Length of the longest tail that begins some stop string."""
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
    """The type of a part of tokenizer.json, or the types that a Sequence holds."""
    described = parsed.get(part) if isinstance(parsed, dict) else None
    if not isinstance(described, dict):
        return ()
    inner = described.get("decoders", [described])
    # tokenizers of some years ago left the model's type out; its merges give a BPE away.
    return tuple(str(one.get("type") or ("BPE" if "merges" in one else "unnamed")) for one in inner
                 if isinstance(one, dict))


def _with_merges_as_strings(parsed: Dict[str, Any], description: str) -> str:
    """tokenizers 0.20 and later write a merge as ["a", "b"]; 0.12, the last for Python 3.6, reads "a b"
    alone, and every version reads that. A byte-level token holds no space, so nothing is lost. A description that needs
    no other spelling stays as it is: writing 50,000 entries anew takes time at each start."""
    model = parsed["model"]
    merges = model.get("merges", ())
    if all(isinstance(merge, str) for merge in merges):
        return description
    model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return json.dumps(parsed)


def _tokenizer_of(description: str, source: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MerinoError(f"the package tokenizers is not installed ({error}). "
                          "Run: python3 -m pip install --only-binary=:all: tokenizers") from error
    try:
        return tokenizers.Tokenizer.from_str(description)
    except Exception as error:  # tokenizers raises bare Exception
        raise MerinoError(f"tokenizers {tokenizers.__version__} cannot read {source}: {error}. Install a "
                          "newer tokenizers, or export the bundle again.") from error
