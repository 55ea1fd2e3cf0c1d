"""A JSON schema as alternatives without keywords that combine schemas: each is a Flat, which both engines write.

What must not match (`not`, the other schemas of a `oneOf`) is dropped if it cannot match, and is otherwise turned into
what must. No Flat takes more than the schema does; some valid values are in none.
"""
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Set, Tuple

from merino_runtime.generation.constraints.automaton import Automaton, Budget
from merino_runtime.generation.constraints.keywords import (
    EXCEPT,
    KEYWORDS,
    LIMITS,
    NOT_PATTERN,
    TYPES,
    Parts,
    Reader,
    Schema,
    all_known,
    compact,
    different,
    fits,
    refused,
)
from merino_runtime.generation.constraints.pattern import pattern
from merino_runtime.io.json_shape import shown

MOST_ALTERNATIVES = 400
MOST_NOT = 12  # schemas that must not match, beyond those that cannot
DEEPEST_SCHEMA = 64
DEEPEST_COMPARED = 4
RULES = ("pattern", NOT_PATTERN, "format", EXCEPT, "multipleOf")
PAIRS: Dict[str, List[Tuple[str, str]]] = {  # limits of a type that exclude each other
    "string": [("minLength", "maxLength")], "array": [("minItems", "maxItems")],
    "object": [("minProperties", "maxProperties")],
    "number": [(low, high) for low in ("minimum", "exclusiveMinimum") for high in ("maximum", "exclusiveMaximum")]}
PAIRS["integer"] = PAIRS["number"]
BEYOND = {"minimum": "exclusiveMaximum", "exclusiveMaximum": "minimum", "maximum": "exclusiveMinimum",
          "exclusiveMinimum": "maximum"}  # what a number keeps that does not keep a bound


class Members(NamedTuple):
    named: Dict[str, Parts]  # those of `properties` first, then other required ones
    required: Set[str]
    patterns: Dict[str, Parts]  # of patternProperties
    others: Optional[Parts]  # of keys that match none of these; None: there are none
    names: Parts  # propertyNames


class Flat:
    """One alternative: the schemas without their choices and `not`. Of keywords with a value the values are joined."""

    def __init__(self, schemas: Parts) -> None:
        self.schemas = schemas
        self.where = schemas[0].where if schemas else "#"
        self.kinds, stated = set(TYPES), set()  # type: Set[str], Set[str]
        self.limits: Dict[str, Any] = {}
        self.rules: List[Tuple[str, Any, str]] = []  # of RULES: keyword, value, path
        self.values: Optional[List[Any]] = None  # enum: those that are valid for all else
        self.members: Optional[Members] = None
        for schema in schemas:
            self.kinds &= schema.get("type", self.kinds)
            stated |= {KEYWORDS[keyword][0] for keyword in schema} - {""}
            for keyword, value in schema.items():
                if keyword in LIMITS:
                    closest = max if "min" in keyword.lower() else min
                    self.limits[keyword] = closest(value, self.limits.get(keyword, value))
                elif keyword in RULES:
                    self.rules.append((keyword, value, f"{schema.where}/{keyword}"))
                elif keyword == "enum" and self.values is None:
                    self.values = different(value)
        # Without `type` the types are those that the keywords are of; without any keyword, all.
        kinds = self.kinds if any("type" in schema for schema in schemas) else stated or self.kinds
        self.types = [kind for kind in TYPES if kind in kinds and not (kind == "integer" and "number" in kinds)]


class Normal:
    """One schema."""

    def __init__(self, root: Any, path: str, budget: Budget) -> None:
        self.schema, self._budget = Reader(root, path).schema, budget
        self._negated: Dict[Schema, List[Parts]] = {}
        self._wide: Dict[Parts, List[Flat]] = {}
        self._patterns: Dict[str, Tuple[Automaton, int]] = {}

    def flats(self, parts: Parts) -> List[Flat]:
        results = [flat for schemas in self._alternatives(parts) for flat in self._settled(schemas, 0)]
        return _limited(results, parts[0].where if parts else "#")

    def _alternatives(self, parts: Parts, above: Tuple[Schema, ...] = ()) -> List[Parts]:
        """Return the alternatives, each as schemas whose choices are made. above: the schemas around them in the same
        place."""
        results: List[Parts] = [()]
        for schema in parts:
            self._budget.spend(1)
            if schema in above or len(above) > DEEPEST_SCHEMA:
                raise refused(schema.where, "it refers to itself without end, so that it describes no value")
            results = [(*result, schema) for result in results if schema.get("enum") != []]
            for choice in schema.choices:
                branches = [branch for inner in choice for branch in self._alternatives(inner, (*above, schema))]
                _limited(range(len(results) * len(branches)), schema.where)
                results = [(*result, *branch) for result in results for branch in branches]
        return results

    def _merged(self, schemas: Parts) -> Optional[Flat]:
        """Return the schemas as one, without what must not match; None if no value is valid for all."""
        self._budget.spend(1)
        flat = Flat(schemas)
        if flat.values is not None:
            checked = [(value, all_known([fits(value, schema, self.found) for schema in schemas]))
                       for value in flat.values]
            flat.values = [value for value, valid in checked if valid]
            if not flat.values and any(valid is None for _, valid in checked):
                raise refused(flat.where, "no value of an enum is known to be valid for the keywords beside it")
        return flat if flat.kinds and flat.values != [] else None

    def found(self, text: str, value: str) -> Optional[bool]:
        """Return whether a pattern is found in a text; None if JSON Schema's dialect may differ."""
        if text not in self._patterns:
            automaton = Automaton(budget=self._budget)
            node = pattern(automaton, text, lambda what: refused(f"the pattern {text!r:.80}", what))
            self._patterns[text] = automaton, automaton.start(node)
        automaton, state = self._patterns[text]
        if automaton.accepts(automaton.run(state, compact(value))):
            return True
        return None if any(ord(char) > 127 for char in value) else False

    # What must not match

    def _settled(self, schemas: Parts, count: int = 0) -> List[Flat]:
        """Return the alternatives of schemas of which some have `not`. count: of those that were turned into what must
        match."""
        flat = self._merged(schemas)
        if flat is None or flat.values is not None:
            return [flat] if flat else []
        for index, schema in enumerate(schemas):
            if "not" not in schema or all(self._apart(flat, other) for other in self._widest((schema["not"],))):
                continue
            if count > MOST_NOT:
                raise refused(schema.where, "too many schemas must not match")
            rest = (*schemas[:index], schema.without("not"), *schemas[index + 1:])
            return _limited([flat for parts in self._negation(schema["not"]) for more in self._alternatives(parts)
                             for flat in self._settled((*rest, *more), count + 1)], schema.where)
        return [flat]

    def _widest(self, parts: Parts) -> List[Flat]:
        """Return the alternatives of schemas without what must not match."""
        if parts not in self._wide:
            merged = [self._merged(schemas) for schemas in self._alternatives(parts)]
            self._wide[parts] = [flat for flat in merged if flat is not None]
        return self._wide[parts]

    def _apart(self, flat: Flat, other: Flat, depth: int = 0) -> bool:
        """Return whether no value of flat, as it is written, is one of other."""
        self._budget.spend(1)
        for one, two in ((flat, other), (other, flat)):
            if one.values is not None:
                return all(any(fits(value, schema, self.found, alone=True) is False for schema in two.schemas)
                           for value in one.values)
        return all(self._apart_of(kind, flat, other, depth) for kind in flat.kinds & other.kinds)

    def _apart_of(self, kind: str, flat: Flat, other: Flat, depth: int) -> bool:
        """Return as `_apart` for the values of one type."""
        for one, two in ((flat.limits, other.limits), (other.limits, flat.limits)):
            for low, high in PAIRS.get(kind, ()):
                strict = low + high != "minimummaximum" and kind in ("integer", "number")
                if low in one and high in two and (one[low] > two[high] or strict and one[low] == two[high]):
                    return True
        if kind != "object" or depth > DEEPEST_COMPARED:
            return False
        ours, theirs = self.members(flat), self.members(other)
        for name in {**theirs.named, **dict.fromkeys(ours.required)}:
            mine, parts = ours.named.get(name), self._of_key(other, name)
            if mine is None:  # it is not written; with `not` inside, a key of a member may be
                if name in theirs.required and not depth and ours.others is None and not any(
                        self.found(text, name) is not False for text in ours.patterns):
                    return True
            elif (name in ours.required or name in theirs.required) and all(
                    self._apart(value, part, depth + 1) for value in self._widest(mine)
                    for part in self._widest(parts)):
                return True
        return False

    def _negation(self, schema: Schema) -> List[Parts]:
        """Return alternatives of values for which the schema is not valid; not always all."""
        if schema in self._negated:
            return self._negated[schema]
        results: List[Parts] = [()] if schema.get("enum") == [] else []

        def add(kind: Any, **keywords: Any) -> None:
            kinds = {"type": {*kind}} if kind else {}
            results.append((Schema(schema.where, **kinds, **keywords),))

        for keyword, value in schema.items():
            kind = KEYWORDS[keyword][0]
            if keyword == "type" and set(TYPES) - value:
                add([kind for kind in TYPES if kind not in value and not (kind == "number" and "integer" in value)])
            elif keyword == "enum" and value:
                add(None, **{EXCEPT: value})
            elif keyword == "required":
                for name in value:
                    add([kind], properties={name: Schema(schema.where, enum=[])})
            elif keyword == "properties":
                for name, inner in value.items():
                    add([kind], required=[name], properties={name: inner.opposite})
            elif keyword == "pattern":
                add([kind], **{NOT_PATTERN: value})
            elif keyword in BEYOND:
                add(["number", "integer"], **{BEYOND[keyword]: value})
            elif keyword in LIMITS and keyword.startswith("max"):
                add([kind], **{"min" + keyword[3:]: value + 1})
            elif keyword in LIMITS and value:
                add([kind], **{"max" + keyword[3:]: value - 1})
            elif keyword == "not":
                results.append((value,))
        for choice in schema.choices:
            if len(choice) == 1:
                results += [(part.opposite,) for part in choice[0]]
            else:  # none of the alternatives, by the first schema of each
                results.append(tuple(parts[0].opposite for parts in choice))
        others = [keyword for keyword in schema if keyword not in ("type", "enum")]
        if others and not results:
            raise refused(f"{schema.where}/{others[0]}", "inside `not` or `oneOf` this keyword is not supported")
        self._negated[schema] = results
        return results

    # Members of objects, items of arrays

    def _of_key(self, flat: Flat, name: Optional[str], text: Optional[str] = None) -> Parts:
        """Return the schemas of a key: of a name, of the keys that match one pattern alone, or of all others."""
        parts: List[Schema] = []
        for schema in flat.schemas:
            before = len(parts)
            if name in schema.get("properties", {}):
                parts.append(schema["properties"][name])
            for other, inner in schema.get("patternProperties", {}).items():
                match = other == text if name is None else self.found(other, name)
                if match is None:
                    raise refused(inner.where, f"whether it matches the key {shown(name)} depends on the dialect of "
                                               "patterns")
                parts += [inner] if match else []
            if len(parts) == before and "additionalProperties" in schema:
                parts.append(schema["additionalProperties"])
            if name is not None and not fits(name, schema.get("propertyNames", Schema("")), self.found):
                parts.append(Schema(schema["propertyNames"].where, enum=[]))
        return tuple(parts)

    def members(self, flat: Flat) -> Members:
        if flat.members is None:
            schemas = flat.schemas
            names = [name for schema in schemas for name in schema.get("properties", ())]
            required = [name for schema in schemas for name in schema.get("required", ())]
            patterns = {text: self._of_key(flat, None, text) for schema in schemas
                        for text in schema.get("patternProperties", ())}
            named = {name: self._of_key(flat, name) for name in [*names, *required]}
            others = self._of_key(flat, None)
            # Other keys are not written beside those that are named, unless a schema asks for them.
            some = any(not never(parts) for parts in [*named.values(), *patterns.values()])
            asked = any("additionalProperties" in schema and not never((schema["additionalProperties"],))
                        for schema in schemas)
            closed = some and not asked or never(others)
            flat.members = Members(named, set(required), patterns, None if closed else others, tuple(
                schema["propertyNames"] for schema in schemas if "propertyNames" in schema))
        return flat.members


def items(flat: Flat) -> Tuple[List[Parts], Parts]:
    """Return the schemas of the first items, and of all others."""
    count = max([len(schema.get("prefixItems", ())) for schema in flat.schemas], default=0)
    first: List[Parts] = []
    for index in range(count):
        listed = [(schema.get("prefixItems", ()), schema) for schema in flat.schemas]
        first.append(tuple(parts[index] if index < len(parts) else schema["items"] for parts, schema in listed
                           if index < len(parts) or "items" in schema))
    return first, tuple(schema["items"] for schema in flat.schemas if "items" in schema)


def stated(parts: Parts) -> FrozenSet[Schema]:
    """Return those that are not `true`: what tells parts from others."""
    return frozenset(schema for schema in parts if schema or schema.choices)


def never(parts: Parts) -> bool:
    return any(schema.get("enum") == [] for schema in parts)


def _limited(alternatives: Any, where: str) -> Any:
    if len(alternatives) > MOST_ALTERNATIVES:
        raise refused(where, f"it has more than {MOST_ALTERNATIVES} alternatives")
    return alternatives
