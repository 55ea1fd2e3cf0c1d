"""A JSON schema as an expression of compact JSON: fixed keys in order, without spaces. What cannot be expressed is
refused by its keyword and its path.

All text that matches is valid. Valid text that does not match: other spellings, keys in another order, keys that the
schema does not name, and numbers of more than 18 digits.
"""
import functools
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import NOTHING, Automaton
from merino_runtime.generation.constraints.formats import FORMATS, OTHER_FORMATS
from merino_runtime.generation.constraints.keywords import EXCEPT, NOT_PATTERN, compact, different, is_a, refused
from merino_runtime.generation.constraints.normal import Flat, Normal, Part, Parts
from merino_runtime.generation.constraints.numerals import integer, number
from merino_runtime.generation.constraints.pattern import length_of, pattern
from merino_runtime.generation.constraints.product import Build, product
from merino_runtime.io.json_shape import shown

MOST_UNIQUE = 256
MOST_COUNTED = 64  # keys of an object whose number is limited
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def schema_node(automaton: Automaton, schema: Any, path: str = "") -> int:
    """Return the expression of a schema. Raise MerinoError for what cannot be expressed, or if nothing satisfies the
    schema. path: of the schema, for messages."""
    where = path + "#"
    writer = Writer(automaton, Normal(schema, path, automaton.budget))
    node = writer.node(((schema, where),))
    if not automaton.matches(node):
        generic = where, "nothing satisfies it (or the tokenizer has no tokens to write it)"
        raise refused(*(writer.reason or generic))
    return node


def any_object(automaton: Automaton) -> int:
    return schema_node(automaton, {"type": "object"})


class Writer:
    """Writes the alternatives of a schema as expressions. `where` is the path of a part, as in a $ref."""

    def __init__(self, make: Automaton, normal: Normal) -> None:
        self.make, self._normal = make, normal
        self._made: Dict[Any, Optional[int]] = {}  # by the identities of schemas; None: under way
        self._rules: Dict[Any, int] = {}  # of those that contain themselves
        self._strings: Dict[Any, int] = {}
        self.reason: Optional[Tuple[str, str]] = None  # why a part matches nothing: its path and words

    def node(self, parts: Sequence[Part]) -> int:
        """Return what is valid for all schemas of parts."""
        key = tuple(sorted({id(schema) for schema, _ in parts if schema is not True}))
        if key not in self._made:
            self._made[key] = None
            node = self.make.alt(*[self._flat(flat) for flat in self._normal.flats(tuple(parts))])
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
        excluded = [value for keyword, values, _ in flat.texts if keyword == EXCEPT for value in values]
        among = [value for value in excluded if is_a(kind, value)]
        make, where = self.make, flat.where
        if kind in ("boolean", "null"):
            values = [value for value in ((True, False) if kind == "boolean" else (None,)) if value not in among]
            return make.alt(*[make.lit(compact(value)) for value in values])
        if kind in ("object", "array"):  # excluded values of these are not compared: none is written
            return NOTHING if among else self._object(flat) if kind == "object" else self._array(flat)
        if kind == "string":
            key = repr(([text[:2] for text in flat.texts], sorted(flat.sizes.items())))
            if key not in self._strings:
                self._strings[key] = self._string(flat, among)
            return self._strings[key]
        if flat.multiples:
            raise refused(f"{where}/multipleOf", "this keyword is not supported")
        bounds = [flat.bounds.get(keyword) for keyword in BOUNDS]
        bounded: Callable = integer if kind == "integer" or among else number
        if not among:
            node = bounded(make, *bounds, refusal(where))
            return self._nothing(where, f"no {kind} is within its bounds") if node == NOTHING else node
        return product(make, [lambda parts: bounded(parts, *bounds, refusal(where))],  # spelled in one way
                       [lambda parts: parts.alt(*[parts.lit(b"%d" % value) for value in among])],
                       refusal(where))

    def _string(self, flat: Flat, excluded: Sequence[str] = ()) -> int:
        """Return a string. What has no pattern may be spelled with escapes; all others as `json.dumps` does."""
        make, where = self.make, flat.where
        least, most = flat.sizes.get("minLength", 0), flat.sizes.get("maxLength", -1)
        if 0 <= most < least:
            return self._nothing(f"{where}/maxLength", f"nothing satisfies it: it is {most}, and minLength is {least}")
        wanted, unwanted = [], []  # type: List[Build], List[Build]
        counted = bool(least or most >= 0)
        for keyword, value, here in flat.texts:
            if keyword == EXCEPT or keyword == "format" and value not in FORMATS and value not in OTHER_FORMATS:
                continue
            if not isinstance(value, str):
                raise refused(here, f"it is {shown(value)}, must be a string")
            if keyword == "format" and value not in FORMATS:
                raise refused(here, f"{shown(value)} is not supported, but {', '.join(sorted(FORMATS))} are")
            text = FORMATS[value] if keyword == "format" else value

            (unwanted if keyword == NOT_PATTERN else wanted).append(
                functools.partial(pattern, text=text, refuse=refusal(here)))
            shortest, longest = length_of(text, refusal(here)) if keyword != NOT_PATTERN else (0, -1)
            if shortest >= least and (most < 0 or 0 <= longest <= most):
                counted = False
        if excluded:
            unwanted.append(lambda parts: parts.alt(*[parts.lit(compact(value)) for value in excluded]))
        if unwanted and not wanted:
            wanted.append(lambda parts: pattern(parts, "", refusal(where)))
        if counted and wanted:
            wanted.append(lambda parts: parts.seq(parts.lit(b'"'), parts.text(least, most)))
        if not wanted:
            return make.seq(make.lit(b'"'), make.text(least, most))
        if len(wanted) == 1 and not unwanted:
            return wanted[0](make)
        return product(make, wanted, unwanted, refusal(where))

    def _object(self, flat: Flat) -> int:
        """Return an object: its named keys in order, then the others."""
        make, where, members = self.make, flat.where, self._normal.members(flat)
        least, most = flat.sizes.get("minProperties", 0), flat.sizes.get("maxProperties", -1)
        named = []
        for name, parts in members.named.items():
            value = NOTHING if any(schema is False for schema, _ in parts) else self.node(parts)
            if value == NOTHING and name in members.required:
                return self._nothing(parts[0][1] if parts else where, "nothing satisfies it, and it is required")
            if value != NOTHING:
                named.append((make.seq(make.lit(compact(name) + b":"), value), name in members.required))
        free = []
        for text, parts in [*members.patterns.items(), *([] if members.others is None else [(None, members.others)])]:
            if not any(schema is False for schema, _ in parts):
                key = self._key(text, [*members.named], [other for other in members.patterns if other != text],
                                members.names, where)
                free.append(make.seq(key, make.lit(b":"), self.node(parts)))
        others = make.alt(*free)
        needed = sum(needed for _, needed in named)
        counts = most >= 0 and (most < len(named) or others != NOTHING) or least > needed
        if not counts:
            return self._members(named, others, 0, -1)
        if len(named) > MOST_COUNTED:
            raise refused(where, f"it limits the number of more than {MOST_COUNTED} keys, which is not supported")
        if least > needed + 1 and others != NOTHING:  # keys that are not named may be alike
            others = NOTHING if least <= len(named) else others
            if others != NOTHING:
                raise refused(f"{where}/minProperties", "more than 1 is not supported for keys that are not named")
        return self._members(named, others, least, most)

    def _members(self, named: Sequence[Tuple[int, bool]], others: int, least: int, most: int) -> int:
        """named: each with whether it is required. Numbers of members are counted if there are limits."""
        make, limited = self.make, least > 0 or most >= 0
        ends: Dict[int, int] = {}  # what follows, by the number of members before it; 0 and 1 without limits
        for count in range(len(named) + 1) if limited else (0, 1):
            more = make.seq(make.lit(b","), others)
            left = max(most - count, -1) if most >= 0 else -1
            low = max(least - count, 0) if limited else 0
            if most >= 0 and count > most:
                ends[count] = NOTHING
            elif count or others == NOTHING:
                ends[count] = make.seq(make.rep(more, low, left), make.lit(b"}"))
            else:
                some = NOTHING if left == 0 else make.seq(others, make.rep(more, max(low - 1, 0), max(left - 1, -1)))
                ends[count] = make.seq(make.alt(some, make.seq() if low == 0 else NOTHING), make.lit(b"}"))
        for node, needed in reversed(named):
            before = {}
            for count in ends:
                after = ends.get(count + 1, NOTHING) if limited else ends[1]
                written = make.seq(make.lit(b",") if count else make.seq(), node, after)
                before[count] = make.alt(written, NOTHING if needed else ends[count])
            ends = before
        return make.seq(make.lit(b"{"), ends[0])

    def _key(self, text: Optional[str], names: List[str], others: List[str], rules: Parts, where: str) -> int:
        """Return a key that is found by one pattern, or by any, and is none of these names nor found by others."""
        wanted: List[Build] = [lambda parts: pattern(parts, text or "", refusal(where))]
        unwanted: List[Build] = [functools.partial(pattern, text=other, refuse=refusal(where)) for other in others]
        if names:
            unwanted.append(lambda parts: parts.alt(*[parts.lit(compact(name)) for name in names]))
        if rules:
            if text is not None or unwanted:
                raise refused(f"{where}/propertyNames", "beside other keywords of keys this is not supported")
            return self.node([*rules, ({"type": "string"}, where)])
        if text is None and not unwanted:
            return self.make.seq(self.make.lit(b'"'), self.make.text())
        return wanted[0](self.make) if not unwanted else product(self.make, wanted, unwanted, refusal(where))

    def _array(self, flat: Flat) -> int:
        where, (first, others) = flat.where, self._normal.items(flat)
        least, most = flat.sizes.get("minItems", 0), flat.sizes.get("maxItems", -1)
        for schema, here in flat.arrays:
            if "contains" in schema:
                raise refused(f"{here}/contains", "this keyword is not supported")
            if schema.get("uniqueItems") and not 0 <= most <= 1:
                return self._unique(first, others, least, most, f"{here}/uniqueItems")
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
            raise refused(where, f"it is supported for items with an enum of up to {MOST_UNIQUE} values")
        make = self.make
        parts = [make.lit(compact(value)) for value in different(values)]
        listed = make.different(parts, least, most if most >= 0 else len(parts), make.lit(b","))
        if listed == NOTHING:
            return self._nothing(where[:-len("/uniqueItems")], "no list satisfies it")
        return make.seq(make.lit(b"["), listed, make.lit(b"]"))


def refusal(where: str) -> Callable[[str], MerinoError]:
    return lambda what: refused(where, what)
