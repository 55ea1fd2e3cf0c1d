"""Uses llguidance, if it is installed, for schemas and patterns that the built-in automaton cannot express.

It is optional, for Python 3.9 and later. The built-in automaton comes first, because it behaves alike on every board.
"""
import contextlib
import itertools
import json
import re
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Union

import numpy as np

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import Budget
from merino_runtime.generation.constraints.keywords import EXCEPT, NOT_PATTERN, TYPES, Parts, Schema, refused
from merino_runtime.generation.constraints.normal import Flat, Normal, items, stated
from merino_runtime.generation.constraints.pattern import FORMATS, OTHER_FORMATS
from merino_runtime.generation.constraints.tokens import Trie, spelled
from merino_runtime.sampling import Form

BYTES = ("utf-8", "surrogateescape")  # a byte of no whole character becomes a character of its own
COMPACT: Any = {"whitespace_flexible": False}
# Of one step and of one grammar: five to ten times what llguidance allows. Older versions have no limits.
LIMITS = {"initial_lexer_fuel": 10000000, "step_lexer_fuel": 2000000, "step_max_items": 500000,
          "max_items_in_row": 20000, "max_lexer_states": 250000, "verbose_errors": False}


class Json(NamedTuple):
    """A part of a text: JSON that is valid for a schema."""
    schema: Any
    path: str = ""  # of the schema, for messages


class Other(NamedTuple):
    """A part of a text: anything that does not begin with this character."""
    first: str


LARK = "%llguidance"  # begins a grammar in llguidance's own language
Texts = List[Sequence[Union[str, Json, Other, Form]]]  # alternatives, each a sequence of parts


def guided(trie: Trie, eos_ids: Sequence[int], texts: Texts, refusal: MerinoError) -> "GuidedState":
    """Compile texts. Raise the refusal of the built-in automaton, with the error of llguidance, or with a note that it
    is not installed."""
    try:
        grammar = _lark(texts)
    except MerinoError:  # neither engine can express it
        raise refusal  # noqa: B904
    llguidance: Any = None
    with contextlib.suppress(ImportError):
        import llguidance
    if not hasattr(llguidance, "LLMatcher"):  # what Python 3.6 to 3.8 install of it is empty
        raise MerinoError(f"{refusal} The package llguidance takes more constraints, on Python 3.9 and later.")
    if not eos_ids:
        raise refusal
    tokens = trie.tokenizer.kept.get(("llguidance", *eos_ids))
    if tokens is None:
        wrapped = llguidance.TokenizerWrapper(_Tokens(trie, eos_ids))
        tokens = llguidance.LLTokenizer(wrapped, eos_token=list(eos_ids))
        trie.tokenizer.kept[("llguidance", *eos_ids)] = tokens
    limits = {"limits": llguidance.LLParserLimits(**LIMITS)} if hasattr(llguidance, "LLParserLimits") else {}
    matcher = llguidance.LLMatcher(tokens, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0, **limits)
    state = GuidedState(matcher, eos_ids)
    try:
        reason = "" if state.start().allowed().any() else "nothing satisfies it"
    except MerinoError:
        reason = state.error
    if reason:
        raise MerinoError(f"{refusal} llguidance refuses it too: {reason}.")
    return state


def _lark(texts: Texts) -> str:
    """Return texts in llguidance's own language of grammars."""
    rules: List[str] = []

    def part_of(part: Any) -> str:
        if isinstance(part, Json):
            schema = dict(closed_schema(part.schema, part.path), **{"x-guidance": COMPACT})
            rules.append(f"json{len(rules)}: %json {json.dumps(schema)}\n")
            return f"json{len(rules) - 1}"
        if isinstance(part, Form):
            if part.kind == "grammar":
                raise MerinoError("only a grammar in its own language is for llguidance.")
            return "/" + re.sub(r"(\\.)|/", lambda match: match.group(1) or "\\/", part.value, flags=re.S) + "/"
        return f"/[^{part.first}](.|\\n)*/" if isinstance(part, Other) else json.dumps(part)

    whole = texts[0][0]
    if len(texts) == 1 and isinstance(whole, Form) and whole.value.startswith(LARK):
        return str(whole.value)
    return "start: " + " | ".join([" ".join(map(part_of, parts)) for parts in texts]) + "\n" + "".join(rules)


def closed_schema(schema: Any, path: str = "") -> Dict[str, Any]:
    """Return what the built-in automaton reads of a schema, so that both take the same keys and no others: alternatives
    with closed objects, each part once under `$defs`. Raise MerinoError if nothing is valid."""
    normal = Normal(schema, path, Budget())
    names: Dict[FrozenSet[Schema], str] = {}
    definitions: Dict[str, Any] = {}

    def reference(parts: Parts) -> Dict[str, Any]:
        key = stated(parts)
        if key not in names:
            name = names[key] = str(len(names))
            flats = [written(flat) for flat in normal.flats(parts)]
            definitions[name] = {"anyOf": flats} if flats else False
        return {"$ref": "#/$defs/" + names[key]}

    def written(flat: Flat) -> Dict[str, Any]:
        if flat.values is not None:
            return {"enum": flat.values}
        result: Dict[str, Any] = {"type": flat.types} if len(flat.types) < len(TYPES) - 1 else {}
        result.update(flat.limits)
        rules: List[Dict[str, Any]] = []
        for keyword, value, where in flat.rules:
            if keyword in (EXCEPT, NOT_PATTERN):
                rules.append({"not": {"enum" if keyword == EXCEPT else "pattern": value}})
            elif keyword != "format":
                rules.append({keyword: value})
            elif value in OTHER_FORMATS:
                raise refused(where, f"{value} is not supported")
            elif value in FORMATS:  # llguidance's own take February 30
                rules.append({"pattern": FORMATS[value]})
        result.update(rules[0] if len(rules) == 1 else {"allOf": rules} if rules else {})
        members = normal.members(flat)
        if "object" in flat.types and (members.named or members.patterns or members.names or members.others != ()):
            result["properties"] = {name: reference(parts) for name, parts in members.named.items()}
            result["required"] = [name for name in members.named if name in members.required]
            result["patternProperties"] = {text: reference(parts) for text, parts in members.patterns.items()}
            result["additionalProperties"] = False if members.others is None else reference(members.others)
            if members.names:
                result["propertyNames"] = reference(members.names)
        first, others = items(flat)
        if "array" in flat.types and (first or others):
            result["prefixItems"], result["items"] = [reference(parts) for parts in first], reference(others)
        if "array" in flat.types and any(part.get("uniqueItems") for part in flat.schemas):
            result["uniqueItems"] = True
        return result

    root = reference((normal.schema,))
    if definitions["0"] is False:
        raise refused(path + "#", "nothing satisfies it")
    return dict(root, **{"$defs": definitions})


class _Tokens:
    """A tokenizer with llguidance's interface."""

    def __init__(self, trie: Trie, eos_ids: Sequence[int]) -> None:
        spellings = list(trie.spellings)
        spellings += [b""] * (max(eos_ids) + 1 - len(spellings))
        self.special_token_ids = [index for index, data in enumerate(spellings) if not data]
        self.tokens = [data or b"<|special %d|>" % index for index, data in enumerate(spellings)]
        self.eos_token_id, self.bos_token_id = eos_ids[0], None
        self._trie = trie
        self._of_byte = {data[0]: index for index, data in enumerate(trie.spellings) if len(data) == 1}

    def __call__(self, data: bytes) -> List[int]:
        """Return ids of exactly these bytes, which llguidance uses for forced text.

        Forced text may begin and end within a character, and the tokenizer may change a character, as SentencePiece
        replaces a space by U+2581. Such bytes become single tokens, and the text beside them is encoded as usual.
        Behind each token llguidance encodes the rest again, and allows only the result."""
        text = data.decode(*BYTES)
        ids = self._encoded(text)
        if ids:
            return ids
        for kept, chars in itertools.groupby(text, lambda char: bool(self._encoded(char))):
            part = "".join(chars)  # kept: the tokenizer changes none of its characters
            ids += (self._encoded(part) if kept else []) or [
                self._of_byte[byte] for byte in part.encode(*BYTES) if byte in self._of_byte]
        return ids

    def _encoded(self, text: str) -> List[int]:
        """Return the text's ids; [] if it has incomplete characters, or if the tokenizer changes it."""
        whole = text.encode("utf-8", "ignore")
        return spelled(self._trie, b"", whole) if whole == text.encode(*BYTES) else []


class GuidedState:
    """A state of llguidance, with the interface of tokens.State and tokens.Grammar. An error of llguidance is a
    MerinoError: it also reports that state as the end of the text."""

    def __init__(self, matcher: Any, eos_ids: Sequence[int], ended: bool = False) -> None:
        self._matcher, self._eos_ids, self._ended = matcher, eos_ids, ended
        self._mask: Optional[np.ndarray] = None

    def copy(self) -> "GuidedState":
        return GuidedState(self._matcher.deep_copy(), self._eos_ids, self._ended)

    def start(self, until_s: float = float("inf")) -> "GuidedState":  # noqa: ARG002, its steps have limits of their own
        return self.copy()

    @property
    def error(self) -> str:
        return (self._matcher.get_error().strip().splitlines() or ["it is in an unknown error state"])[0][:200]

    def _checked(self, result: Any) -> Any:
        if self._matcher.is_error():
            raise MerinoError(f"the constraint is too large for llguidance: {self.error}. Give one with fewer "
                              "alternatives and smaller repetitions.")
        return result

    @property
    def finished(self) -> bool:
        return self._ended or self._checked(self._matcher.is_accepting())

    @property
    def ended(self) -> bool:
        return self._ended or self._checked(self._matcher.is_stopped())

    def allowed(self) -> np.ndarray:
        if self._mask is None:
            bits = np.frombuffer(self._checked(self._matcher.compute_bitmask()), dtype=np.uint8)
            self._mask = np.unpackbits(bits, bitorder="little").astype(bool)
        return self._mask

    def advance(self, token_id: int) -> None:
        if token_id in self._eos_ids and self.finished:
            self._ended = True
        elif self._ended or not self._checked(self._matcher.validate_tokens([token_id])) or not self._checked(
                self._matcher.consume_token(token_id)):
            raise MerinoError(f"token {token_id} is not allowed here by the constraint. Choose one that `allowed` has.")
        self._mask = None

    def forced(self) -> List[int]:
        return [] if self.ended else self._checked(list(self._matcher.compute_ff_tokens()))
