"""A JSON schema as an expression of compact JSON: fixed keys in order, without spaces. What cannot be expressed is
refused by its keyword and its path.

All text that matches is valid. Valid text that does not match: other spellings, keys in another order, keys that the
schema does not name, and numbers of more than 18 digits.
"""
import functools
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

from merino_runtime.generation.constraints.automaton import NOTHING, Automaton
from merino_runtime.generation.constraints.keywords import (
    EXCEPT,
    NOT_PATTERN,
    Parts,
    Schema,
    compact,
    different,
    is_a,
    refused,
)
from merino_runtime.generation.constraints.normal import Flat, Normal, items, never, stated
from merino_runtime.generation.constraints.numerals import integer, number
from merino_runtime.generation.constraints.pattern import FORMATS, OTHER_FORMATS, Build, pattern, product

MOST_UNIQUE = 256
MOST_COUNTED = 64  # keys of an object whose number is limited


def schema_node(automaton: Automaton, schema: Any, path: str = "") -> int:
    """Return the expression of a schema. Raise MerinoError for what cannot be expressed, or if nothing satisfies the
    schema. path: of the schema, for messages."""
    normal = Normal(schema, path, automaton.budget)
    writer = Writer(automaton, normal)
    node = writer.node((normal.schema,))
    if not automaton.matches(node):
        generic = path + "#", "nothing satisfies it (or the tokenizer has no tokens to write it)"
        raise refused(*(writer.reason or generic))
    return node


class Writer:
    """Writes the alternatives of a schema as expressions."""

    def __init__(self, make: Automaton, normal: Normal) -> None:
        self.make, self._normal = make, normal
        self._made: Dict[FrozenSet[Schema], Optional[int]] = {}  # None: under way
        self._rules: Dict[FrozenSet[Schema], int] = {}  # of those that contain themselves
        self._strings: Dict[str, int] = {}
        self.reason: Optional[Tuple[str, str]] = None  # why a part matches nothing: its path and words

    def node(self, parts: Parts) -> int:
        """Return what is valid for all schemas of parts."""
        key = stated(parts)
        if key not in self._made:
            self._made[key] = None
            node = self.make.alt(*[self._flat(flat) for flat in self._normal.flats(parts)])
            if key in self._rules:
                self.make.define(self._rules[key], node)
                node = self._rules[key]
            self._made[key] = node
        made = self._made[key]
        if made is None:
            if key not in self._rules:
                self._rules[key] = self.make.rule()
            made = self._rules[key]
        return made

    def _flat(self, flat: Flat) -> int:
        if flat.values is not None:
            return self.make.alt(*[self.make.lit(compact(value)) for value in flat.values])
        return self.make.alt(*[self._of_type(kind, flat) for kind in flat.types])

    def _nothing(self, where: str, what: str) -> int:
        self.reason = self.reason or (where, what)
        return NOTHING

    def _of_type(self, kind: str, flat: Flat) -> int:
        make, where, refuse = self.make, flat.where, functools.partial(refused, flat.where)
        excluded = [value for keyword, values, _ in flat.rules if keyword == EXCEPT for value in values
                    if is_a(kind, value)]
        if kind in ("boolean", "null"):
            values = [value for value in ((True, False) if kind == "boolean" else (None,)) if value not in excluded]
            return make.alt(*[make.lit(compact(value)) for value in values])
        if kind in ("object", "array"):  # excluded values of these are not compared: none is written
            return NOTHING if excluded else self._object(flat) if kind == "object" else self._array(flat)
        if kind == "string":
            key = repr(([rule[:2] for rule in flat.rules], sorted(flat.limits.items())))
            if key not in self._strings:
                self._strings[key] = self._string(flat, excluded)
            return self._strings[key]
        if any(keyword == "multipleOf" for keyword, _, _ in flat.rules):
            raise refused(f"{where}/multipleOf", "this keyword is not supported")
        if excluded:  # integers alone: they are spelled in one way
            return product(make, [lambda parts: integer(parts, flat.limits)],
                           [lambda parts: parts.alt(*[parts.lit(b"%d" % value) for value in excluded])], refuse)
        node = integer(make, flat.limits) if kind == "integer" else number(make, flat.limits, refuse)
        return self._nothing(where, f"no {kind} is within its bounds") if node == NOTHING else node

    def _string(self, flat: Flat, excluded: Sequence[str]) -> int:
        """Return a string. What has no pattern may be spelled with escapes; all others as `json.dumps` does."""
        make, where, refuse = self.make, flat.where, functools.partial(refused, flat.where)
        least, most = flat.limits.get("minLength", 0), flat.limits.get("maxLength", -1)
        if 0 <= most < least:
            return self._nothing(f"{where}/maxLength", f"nothing satisfies it: it is {most}, and minLength is {least}")
        wanted: List[Build] = []
        unwanted: List[Build] = []
        for keyword, value, here in flat.rules:
            if keyword == "format" and value in OTHER_FORMATS:
                raise refused(here, f"{value} is not supported, but {', '.join(sorted(FORMATS))} are")
            if keyword in (EXCEPT, "multipleOf") or keyword == "format" and value not in FORMATS:
                continue
            text = FORMATS[value] if keyword == "format" else value
            (unwanted if keyword == NOT_PATTERN else wanted).append(
                functools.partial(pattern, text=text, refuse=functools.partial(refused, here)))
        if excluded:
            unwanted.append(lambda parts: parts.alt(*[parts.lit(compact(value)) for value in excluded]))
        if unwanted and not wanted:
            wanted.append(lambda parts: pattern(parts, "", refuse))
        if wanted and (least or most >= 0):
            wanted.append(lambda parts: parts.seq(parts.lit(b'"'), parts.text(least, most)))
        if not wanted:
            return make.seq(make.lit(b'"'), make.text(least, most))
        return wanted[0](make) if len(wanted) == 1 and not unwanted else product(make, wanted, unwanted, refuse)

    def _object(self, flat: Flat) -> int:
        """Return an object: its named keys in order, then the others."""
        make, where, members = self.make, flat.where, self._normal.members(flat)
        least, most = flat.limits.get("minProperties", 0), flat.limits.get("maxProperties", -1)
        named = []
        for name, parts in members.named.items():
            value = NOTHING if never(parts) else self.node(parts)
            if value == NOTHING and name in members.required:
                return self._nothing(parts[0].where if parts else where, "nothing satisfies it, and it is required")
            if value != NOTHING:
                named.append((make.seq(make.lit(compact(name) + b":"), value), name in members.required))
        free = []
        for text, parts in [*members.patterns.items(), *([] if members.others is None else [(None, members.others)])]:
            rules = [{NOT_PATTERN: other} for other in members.patterns if other != text]  # type: List[Dict[str, Any]]
            rules += [{EXCEPT: list(members.named)}] if members.named else []
            rules += [] if text is None else [{"pattern": text}]
            key = [*members.names, Schema(where, type={"string"}), *[Schema(where, **rule) for rule in rules]]
            free.append(make.seq(self.node(tuple(key)), make.lit(b":"), NOTHING if never(parts) else self.node(parts)))
        others = make.alt(*free)
        needed = sum(needed for _, needed in named)
        counts = most >= 0 and (most < len(named) or others != NOTHING) or least > needed
        if not counts:
            return self._members(named, others, 0, -1)
        if len(named) > MOST_COUNTED:
            raise refused(where, f"it limits the number of more than {MOST_COUNTED} keys, which is not supported")
        if least > needed + 1 and others != NOTHING:  # keys that are not named may be alike
            if least > len(named):
                raise refused(f"{where}/minProperties", "more than 1 is not supported for keys that are not named")
            others = NOTHING
        return self._members(named, others, least, most)

    def _members(self, named: Sequence[Tuple[int, bool]], others: int, least: int, most: int) -> int:
        """named: each with whether it is required. Members are counted as far as their number matters: up to 1, because
        of the comma, or with limits all."""
        make, more = self.make, self.make.seq(self.make.lit(b","), others)

        def tail(count: int) -> int:
            low, left = max(least - count, 0), most - count if most >= 0 else -1
            if most >= 0 > left:
                return NOTHING
            if count:
                return make.seq(make.rep(more, low, left), make.lit(b"}"))
            some = NOTHING if left == 0 else make.seq(others, make.rep(more, max(low - 1, 0), max(left - 1, -1)))
            return make.seq(make.alt(some, NOTHING if low else make.seq()), make.lit(b"}"))

        last = len(named) if least > 0 or most >= 0 else 1
        ends = [tail(count) for count in range(last + 1)]  # what follows, by the number of members before it
        for node, needed in reversed(named):
            ends = [make.alt(make.seq(make.lit(b",") if count else make.seq(), node, ends[min(count + 1, last)]),
                             NOTHING if needed else end) for count, end in enumerate(ends)]
        return make.seq(make.lit(b"{"), ends[0])

    def _array(self, flat: Flat) -> int:
        where, (first, others) = flat.where, items(flat)
        least, most = flat.limits.get("minItems", 0), flat.limits.get("maxItems", -1)
        for schema in flat.schemas:
            if schema.get("uniqueItems") and not 0 <= most <= 1:
                return self._unique(first, others, least, most, schema.where)
        make, comma = self.make, self.make.lit(b",")
        nodes = [self.node(parts) for parts in first]
        item = self.node(others) if most < 0 or most > len(nodes) else NOTHING
        if 0 <= most < len(nodes):
            nodes = nodes[:most]
        begin = nodes or [item]
        left = max(most - len(begin), 0) if most >= 0 else -1
        more = make.rep(make.seq(comma, item), max(least - len(begin), 0), left)
        tail = make.seq(more, make.lit(b"]"))
        for index in range(len(begin) - 1, -1, -1):
            part = make.seq(comma if index else make.seq(), begin[index], tail)
            tail = make.alt(make.lit(b"]") if index >= least else NOTHING, NOTHING if 0 <= most <= index else part)
        return self._nothing(where, "no list satisfies it") if tail == NOTHING else make.seq(make.lit(b"["), tail)

    def _unique(self, first: Sequence[Parts], others: Parts, least: int, most: int, where: str) -> int:
        """Return a list of different values of an enum."""
        values: List[Any] = []
        for flat in [] if first else self._normal.flats(others):
            if flat.values is None and flat.types != ["boolean"]:
                values = [None] * (MOST_UNIQUE + 1)
                break
            values += [True, False] if flat.values is None else flat.values
        if first or len(values) > MOST_UNIQUE:
            raise refused(f"{where}/uniqueItems",
                          f"it is supported for items with an enum of up to {MOST_UNIQUE} values")
        make = self.make
        parts = [make.lit(compact(value)) for value in different(values)]
        listed = make.different(parts, least, most if most >= 0 else len(parts), make.lit(b","))
        if listed == NOTHING:
            return self._nothing(where, "no list satisfies it")
        return make.seq(make.lit(b"["), listed, make.lit(b"]"))
