"""A JSON schema as alternatives without keywords that combine schemas: each is a Flat, which both engines write.

`$ref`, `allOf` and the keywords beside them are joined. `anyOf`, `oneOf`, `if` and dependencies become alternatives.
What must not match (`not`, the other schemas of a `oneOf`) is dropped if it cannot match, and is otherwise turned into
what must. No Flat takes more than the schema does; some valid values are in none.
"""
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple
from urllib.parse import unquote

from merino_runtime.generation.constraints.automaton import Automaton, Budget
from merino_runtime.generation.constraints.keywords import (
    BY_TYPE,
    EXCEPT,
    IN_PLACE,
    NOT_PATTERN,
    REFUSED,
    TYPES,
    bounds_of,
    compact,
    count_of,
    different,
    items_of,
    list_of,
    names_of,
    object_of,
    refused,
    types_of,
)
from merino_runtime.generation.constraints.pattern import pattern
from merino_runtime.generation.constraints.values import fits
from merino_runtime.io.json_shape import shown

MOST_ALTERNATIVES = 400
MOST_NOT = 12  # schemas that must not match, beyond those that cannot
DEEPEST_SCHEMA = 64
DEEPEST_COMPARED = 4
SIZES = {"string": "Length", "array": "Items", "object": "Properties"}

Part = Tuple[Any, str]  # a schema and its path
Parts = Tuple[Part, ...]  # a value must be valid for all of them


class Members(NamedTuple):
    named: Dict[str, Parts]  # those of `properties` first, then other required ones
    required: Set[str]
    patterns: Dict[str, Parts]  # of patternProperties
    others: Optional[Parts]  # of keys that match none of these; None: there are none
    names: Parts  # propertyNames


class Flat:
    """One alternative. Of keywords with a value the values are joined; those with schemas stay apart."""

    def __init__(self, literals: Parts) -> None:
        self.where = literals[0][1] if literals else "#"
        self.literals = tuple((schema, where) if "not" not in schema else (_without_not(schema), where)
                              for schema, where in literals)
        self.kinds: Optional[Set[str]] = None  # None: no `type`
        self.bounds: Dict[str, Any] = {}  # as of `bounds_of`
        self.sizes: Dict[str, int] = {}  # minLength, maxItems, ...
        self.texts: List[Tuple[str, Any, str]] = []  # pattern, format, NOT_PATTERN, EXCEPT: keyword, value, path
        self.values: Optional[List[Any]] = None  # enum, const: those that are valid for all else
        self.objects: Parts = ()
        self.arrays: Parts = ()
        self.multiples: List[Any] = []
        self.members: Optional[Members] = None

    @property
    def types(self) -> List[str]:
        """Return the types that it has, or without `type` those that its keywords are of; without any, all."""
        stated = {"object": self.objects, "array": self.arrays, "number": self.bounds or self.multiples,
                  "string": {"minLength", "maxLength"} & set(self.sizes) or [
                      text for text in self.texts if text[0] != EXCEPT]}
        kinds = self.kinds or {kind for kind, keywords in stated.items() if keywords} or set(TYPES)
        return [kind for kind in TYPES if kind in kinds and not (kind == "integer" and "number" in kinds)]


class Normal:
    """One schema. `where` is the path of a part, as in a $ref."""

    def __init__(self, root: Any, path: str, budget: Budget) -> None:
        self._root, self._path, self._budget = root, path, budget
        self._negated: Dict[int, List[Parts]] = {}  # by the identity of a schema
        self._own: Dict[Any, Any] = {}  # schemas that are made here: their identity must last
        self._wide: Dict[Any, List[Flat]] = {}
        self._patterns: Dict[str, Tuple[Automaton, int]] = {}
        self._named: Optional[Dict[str, Any]] = None  # schemas by $id and anchor

    def flats(self, parts: Parts) -> List[Flat]:
        results = [flat for literals in self._alternatives(parts) for flat in self._settled(literals, 0)]
        return _limited(results, parts[0][1] if parts else "#")

    # What is joined

    def _alternatives(self, parts: Parts, above: Tuple[int, ...] = ()) -> List[Parts]:
        """Return the alternatives, each as schemas whose keywords in place are resolved, except for `not`. above:
        the schemas around them in the same place."""
        results: List[Parts] = [()]
        for schema, where in parts:
            self._budget.spend(1)
            if isinstance(schema, bool):
                results = results if schema else []
                continue
            if not isinstance(schema, dict):
                raise refused(where, f"it is {shown(schema)}, a schema is an object, true or false")
            if id(schema) in above or len(above) > DEEPEST_SCHEMA:
                raise refused(where, "it refers to itself without end, so that it describes no value")
            for keyword in REFUSED:
                if keyword in schema:
                    raise refused(f"{where}/{keyword}", "this keyword is not supported")
            results = [(*result, (schema, where)) for result in results]
            for choice in self._choices(schema, where):
                branches = [branch for inner in choice for branch in self._alternatives(inner, (*above, id(schema)))]
                if len(branches) * len(results) > MOST_ALTERNATIVES:
                    raise refused(where, f"it has more than {MOST_ALTERNATIVES} alternatives")
                results = [(*result, *branch) for result in results for branch in branches]
        return results

    def _choices(self, schema: Dict[str, Any], where: str) -> List[List[Parts]]:
        """Return what a schema's keywords in place mean: of each choice, all parts of one alternative must match."""
        choices: List[List[Parts]] = []
        if "$ref" in schema:
            target = self.target(schema["$ref"], f"{where}/$ref")
            choices.append([((target, self._path + schema["$ref"]),)])
        for keyword in ("allOf", "anyOf", "oneOf"):
            parts = [(branch, f"{where}/{keyword}/{index}") for index, branch in enumerate(
                list_of(schema, keyword, where, least=1))]
            if parts and keyword == "oneOf":
                choices.append([(part, *[self._not(other) for other in parts if other is not part]) for part in parts])
            elif parts:
                choices.append([tuple(parts)] if keyword == "allOf" else [(part,) for part in parts])
        if "if" in schema:
            condition = (schema["if"], f"{where}/if")
            choices.append([(condition, (schema.get("then", True), f"{where}/then")),
                            (self._not(condition), (schema.get("else", True), f"{where}/else"))])
        for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
            for name, needed in object_of(schema, keyword, where).items():
                here = f"{where}/{keyword}/{name}"
                then = self._kept({"required": needed}, here, "then") if isinstance(needed, list) else (needed, here)
                choices.append([(self._kept({"properties": {name: False}}, here, "no"),),
                                (self._kept({"required": [name]}, here, "if"), then)])
        return choices

    def _kept(self, schema: Dict[str, Any], where: str, what: str) -> Part:
        return self._own.setdefault((where, what), schema), where

    def _not(self, part: Part) -> Part:
        return self._own.setdefault(id(part[0]), {"not": part[0]}), part[1]

    def target(self, ref: Any, where: str = "$ref") -> Any:
        """Return the schema that a reference inside the document names by a pointer, an anchor or a part's $id."""
        if not isinstance(ref, str):
            raise refused(where, f"it is {shown(ref)}, must be a string")
        if self._named is None:
            self._named = {"": self._root}
            left = [self._root]
            while left:
                inner = left.pop()
                if isinstance(inner, dict):
                    for keyword, sign in (("$id", ""), ("id", ""), ("$anchor", "#")):
                        if isinstance(inner.get(keyword), str):
                            self._named.setdefault((sign + inner[keyword]).rstrip("#"), inner)
                left += inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
        base, _, fragment = ref.partition("#")
        pointer = not fragment or fragment.startswith("/")
        target = self._named.get(base if pointer else "#" + fragment)
        for part in fragment.split("/")[1:] if pointer else ():
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and part.isdigit() and int(part) < len(target):
                target = target[int(part)]
            else:
                target = target.get(part) if isinstance(target, dict) else None
        if target is None:
            raise refused(where, f"{ref} is not in the schema. Supported are references inside it, as #/$defs/name")
        return target

    def _merged(self, literals: Parts) -> Optional[Flat]:
        """Return the schemas as one, without what must not match; None if no value is valid for all."""
        flat = Flat(literals)
        self._budget.spend(1)
        for schema, where in literals:
            if "type" in schema:
                kinds = set(types_of(schema, where))
                kinds |= {"integer"} if "number" in kinds else set()
                flat.kinds = kinds if flat.kinds is None else flat.kinds & kinds
            for name, bound in bounds_of(schema, where):
                closest = max if "inimum" in name else min
                flat.bounds[name] = closest(bound, flat.bounds.get(name, bound))
            for name in SIZES.values():
                for keyword, closest in (("min" + name, max), ("max" + name, min)):
                    if keyword in schema:
                        count = count_of(schema, keyword, where)
                        flat.sizes[keyword] = closest(count, flat.sizes.get(keyword, count))
            flat.texts += [(keyword, schema[keyword], f"{where}/{keyword}")
                           for keyword in ("pattern", "format", NOT_PATTERN, EXCEPT) if keyword in schema]
            for keyword in ("enum", "const"):
                if keyword in schema and flat.values is None:
                    flat.values = [schema["const"]] if keyword == "const" else list_of(schema, "enum", where, least=1)
            names_of(schema, "required", where)
            if any(keyword in schema for keyword in BY_TYPE["object"]):
                flat.objects += ((schema, where),)
            if any(keyword in schema for keyword in BY_TYPE["array"]):
                flat.arrays += ((schema, where),)
            flat.multiples += [schema["multipleOf"]] if "multipleOf" in schema else []
        if flat.values is not None:
            checked = [(value, self._fits(value, literals)) for value in different(flat.values)]
            flat.values = [value for value, valid in checked if valid]
            if not flat.values and any(valid is None for _, valid in checked):
                raise refused(flat.where, "no value of an enum is known to be valid for the keywords beside it")
        return None if flat.kinds == set() or flat.values == [] else flat

    def _fits(self, value: Any, parts: Parts) -> Optional[bool]:
        try:
            results = [fits(value, schema, self.target, self.found) for schema, _ in parts]
        except (TypeError, AttributeError, ValueError) as error:
            raise refused(parts[0][1], f"a keyword has a wrong value: {error}") from error
        return False if False in results else None if None in results else True

    def found(self, text: Any, value: str) -> Optional[bool]:
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

    def _settled(self, literals: Parts, count: int) -> List[Flat]:
        """Return the alternatives of schemas of which some have `not`."""
        flat = self._merged(literals)
        if flat is None or flat.values is not None:
            return [flat] if flat else []
        forbidden: Set[str] = set()
        for index, (schema, where) in enumerate(literals):
            part = (schema.get("not", False), where + "/not")
            apart = self._apart(flat, (part,), 0)
            if apart is not None:
                forbidden |= apart
                continue
            if count > MOST_NOT:
                raise refused(where, "too many schemas must not match")
            rest = (*literals[:index], (_without_not(schema), where), *literals[index + 1:])
            return _limited([flat for parts in self._negation(part) for more in self._alternatives(parts)
                             for flat in self._settled((*rest, *more), count + 1)], where)
        if not forbidden:
            return [flat]
        closed = self._merged((*literals, ({"properties": dict.fromkeys(sorted(forbidden), False)}, flat.where)))
        return [closed] if closed else []

    def _widest(self, parts: Parts) -> List[Flat]:
        """Return the alternatives of schemas without what must not match."""
        key = tuple(id(schema) for schema, _ in parts)
        if key not in self._wide:
            merged = [self._merged(literals) for literals in self._alternatives(parts)]
            self._wide[key] = [flat for flat in merged if flat is not None]
        return self._wide[key]

    def _apart(self, flat: Flat, parts: Parts, depth: int) -> Optional[Set[str]]:
        """Return keys without which no value of flat is valid for the schemas; None if some value may be."""
        forbidden: Set[str] = set()
        for other in self._widest(parts):
            self._budget.spend(1)
            for one, two in ((flat, other), (other, flat)):
                if one.values is not None:
                    if any(self._fits(value, two.literals) is not False for value in one.values):
                        return None
                    break
            else:
                kinds = [set(TYPES) if one.kinds is None else one.kinds for one in (flat, other)]
                for kind in kinds[0] & kinds[1]:
                    keys = self._apart_of(kind, flat, other, depth)
                    if keys is None:
                        return None
                    forbidden |= keys
        return forbidden

    def _apart_of(self, kind: str, flat: Flat, other: Flat, depth: int) -> Optional[Set[str]]:
        """Return as `_apart` for the values of one type."""
        if kind in ("number", "integer"):
            bounds = [*flat.bounds.items(), *other.bounds.items()]
            return set() if any(
                "inimum" in low and "aximum" in high
                and (least > most or least == most and low + high != "minimummaximum")
                for low, least in bounds for high, most in bounds) else None
        size = SIZES.get(kind, "")
        for one, two in ((flat, other), (other, flat)):
            if one.sizes.get("min" + size, 0) > two.sizes.get("max" + size, float("inf")):
                return set()
        if kind != "object" or depth > DEEPEST_COMPARED:
            return None
        ours, theirs = self.members(flat), self.members(other)
        for name in {**theirs.named, **dict.fromkeys(ours.required)}:
            if name not in ours.required and name not in theirs.required:
                continue
            mine, parts = ours.named.get(name), self._of_key(other, name)
            if mine is None and ours.others is None and not any(
                    self.found(text, name) is not False for text in ours.patterns):
                return {name}
            if mine is not None and all(self._apart(value, parts, depth + 1) == set() for value in self._widest(mine)):
                return set()
        return None

    def _negation(self, part: Part) -> List[Parts]:
        """Return alternatives of values for which the schema is not valid; not always all."""
        schema, where = part
        if not isinstance(schema, dict):
            return [] if schema is True else [()]
        if id(schema) in self._negated:
            return self._negated[id(schema)]
        results: List[Parts] = []

        def add(keyword: str, value: Any, **others: Any) -> None:
            results.append((({keyword: value, **others}, where),))

        for keyword, value in schema.items():
            kind = next((kind for kind, size in SIZES.items() if keyword in ("min" + size, "max" + size)), "")
            if keyword == "type":
                kinds = {*types_of(schema, where)}
                kinds |= {"number", "integer"} if kinds & {"number", "integer"} else set()
                if kinds != set(TYPES):
                    add("type", [kind for kind in TYPES if kind not in kinds])
            elif keyword in ("enum", "const"):
                add(EXCEPT, [value] if keyword == "const" else value)
            elif keyword == "required":
                for name in names_of(schema, "required", where):
                    add("type", "object", properties={name: False})
            elif keyword == "properties":
                for name, inner in object_of(schema, keyword, where).items():
                    add("type", "object", required=[name], properties={name: {"not": inner}})
            elif keyword == "pattern":
                add("type", "string", **{NOT_PATTERN: value})
            elif kind and keyword.startswith("max"):
                add("type", kind, **{"min" + SIZES[kind]: count_of(schema, keyword, where) + 1})
            elif kind and count_of(schema, keyword, where):
                add("type", kind, **{"max" + SIZES[kind]: count_of(schema, keyword, where) - 1})
            elif keyword == "not":
                results.append(((value, where),))
            elif keyword in ("allOf", "anyOf", "oneOf"):
                nots = tuple(self._not((inner, where)) for inner in list_of(schema, keyword, where))
                results += [(inner,) for inner in nots] if keyword == "allOf" else [nots]
            elif keyword == "$ref":
                results.append((self._not((self.target(value, f"{where}/$ref"), where)),))
        opposite = {"minimum": "exclusiveMaximum", "exclusiveMaximum": "minimum", "maximum": "exclusiveMinimum",
                    "exclusiveMinimum": "maximum"}
        for name, bound in bounds_of(schema, where):
            add("type", "number", **{opposite[name]: bound})
        stated = [keyword for keyword in schema if keyword in IN_PLACE or any(
            keyword in keywords for keywords in BY_TYPE.values())]
        if not results and stated:
            raise refused(f"{where}/{stated[0]}", "inside `not` or `oneOf` this keyword is not supported")
        self._negated[id(schema)] = results
        return results

    # Members of objects, items of arrays

    def _of_key(self, flat: Flat, name: Optional[str], text: Optional[str] = None) -> Parts:
        """Return the schemas of a key: of a name, of the keys that match one pattern alone, or of all others."""
        parts: List[Part] = []
        for schema, where in flat.objects:
            before = len(parts)
            if name is not None and name in schema.get("properties", {}):
                parts.append((schema["properties"][name], f"{where}/properties/{name}"))
            for other, inner in schema.get("patternProperties", {}).items():
                here = f"{where}/patternProperties/{other}"
                match = other == text if name is None else self.found(other, name)
                if match is None:
                    raise refused(here, f"whether it matches the key {shown(name)} depends on the dialect of patterns")
                parts += [(inner, here)] if match else []
            if len(parts) == before and "additionalProperties" in schema:
                parts.append((schema["additionalProperties"], f"{where}/additionalProperties"))
            names = f"{where}/propertyNames"
            if name is not None and not self._fits(name, ((schema.get("propertyNames", True), names),)):
                parts.append((False, names))
        return tuple(parts)

    def members(self, flat: Flat) -> Members:
        if flat.members is None:
            required = [name for schema, where in flat.objects for name in names_of(schema, "required", where)]
            names = [name for schema, where in flat.objects for name in object_of(schema, "properties", where)]
            patterns = {text: self._of_key(flat, None, text) for schema, where in flat.objects
                        for text in object_of(schema, "patternProperties", where)}
            named = {name: self._of_key(flat, name) for name in [*names, *required]}
            some = any(not _never(parts) for parts in [*named.values(), *patterns.values()])
            asked = [schema for schema, _ in flat.objects if isinstance(schema.get("additionalProperties"), dict)]
            others = self._of_key(flat, None)
            closed = some and not asked or _never(others)
            flat.members = Members(named, set(required), patterns, None if closed else others,
                                   tuple((schema["propertyNames"], f"{where}/propertyNames")
                                         for schema, where in flat.objects if "propertyNames" in schema))
        return flat.members

    def items(self, flat: Flat) -> Tuple[List[Parts], Parts]:
        """Return the schemas of the first items, and of all others."""
        arrays = [items_of(schema, where) for schema, where in flat.arrays]
        count = max([len(first) for first, _ in arrays], default=0)
        return [tuple(first[index] if index < len(first) else others for first, others in arrays)
                for index in range(count)], tuple(others for _, others in arrays)


def _without_not(schema: Dict[str, Any]) -> Dict[str, Any]:
    return {keyword: value for keyword, value in schema.items() if keyword != "not"}


def _never(parts: Parts) -> bool:
    return any(schema is False for schema, _ in parts)


def _limited(flats: List[Flat], where: str) -> List[Flat]:
    if len(flats) > MOST_ALTERNATIVES:
        raise refused(where, f"it has more than {MOST_ALTERNATIVES} alternatives")
    return flats
