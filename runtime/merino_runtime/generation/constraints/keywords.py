"""Reads a JSON schema into one form: the values of keywords are checked, older drafts are rewritten, and keywords that
combine schemas become choices between alternatives. Unknown keywords are annotations, so they are ignored.

`fits` says whether one value is valid for a schema, as far as a constraint needs to know it before it is built.
"""
import json
import operator
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple
from urllib.parse import unquote

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import shown

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
NOT_PATTERN, EXCEPT = " not pattern", " not enum"  # keywords of our own: what a string and a value must not be
# They state something, and nothing here reads them.
REFUSED = ("$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems", "contains")
# Limits of numbers, lengths and counts: the comparison of what is valid with the limit.
LIMITS: Dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge, "maximum": operator.le, "exclusiveMinimum": operator.gt, "exclusiveMaximum": operator.lt,
    "minLength": operator.ge, "maxLength": operator.le, "minItems": operator.ge, "maxItems": operator.le,
    "minProperties": operator.ge, "maxProperties": operator.le,
}
# Keyword -> the type that it limits ("": it is not of one type), and the shape of its value.
KEYWORDS: Dict[str, Tuple[str, str]] = {
    "type": ("", "types"), "enum": ("", "values"), EXCEPT: ("", "any"), "not": ("", "schema"),
    "allOf": ("", "schemas"), "anyOf": ("", "schemas"), "oneOf": ("", "schemas"),
    "if": ("", "schema"), "then": ("", "schema"), "else": ("", "schema"),
    "dependencies": ("", "needed"), "dependentRequired": ("", "needed"), "dependentSchemas": ("", "needed"),
    "properties": ("object", "members"), "patternProperties": ("object", "members"), "required": ("object", "names"),
    "additionalProperties": ("object", "schema"), "propertyNames": ("object", "schema"),
    "minProperties": ("object", "count"), "maxProperties": ("object", "count"),
    "prefixItems": ("array", "items"), "items": ("array", "schema"), "uniqueItems": ("array", "any"),
    "minItems": ("array", "count"), "maxItems": ("array", "count"),
    "minLength": ("string", "count"), "maxLength": ("string", "count"),
    "pattern": ("string", "text"), NOT_PATTERN: ("string", "text"), "format": ("string", "text"),
    "minimum": ("number", "number"), "maximum": ("number", "number"), "exclusiveMinimum": ("number", "bound"),
    "exclusiveMaximum": ("number", "bound"), "multipleOf": ("number", "any"),
}
# Shape -> what a value must be, and the test.
SHAPES: Dict[str, Tuple[str, Callable[[Any], Any]]] = {
    "types": (f"one of {', '.join(TYPES)}, or a list of them",
              lambda value: bool(value) and all(kind in TYPES for kind in _listed(value))),
    "values": ("a list of at least one", lambda value: isinstance(value, list) and value),
    "schemas": ("a list of at least one", lambda value: isinstance(value, list) and value),
    "items": ("a list", lambda value: isinstance(value, list)),
    "names": ("a list of strings", lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value)),
    "members": ("an object", lambda value: isinstance(value, dict)),
    "needed": ("an object", lambda value: isinstance(value, dict)),
    "count": ("an integer, 0 or more", lambda value: is_a("integer", value) and value >= 0),
    "number": ("a number", lambda value: is_a("number", value)),
    "bound": ("a number", lambda value: is_a("number", value) or isinstance(value, bool)),  # true in draft 4
    "text": ("a string", lambda value: isinstance(value, str)),
}


class Schema(dict):
    """A schema that was read: keywords with valid values, in which all schemas were read too. Equal to itself alone.

    choices: a value must be valid for all schemas of at least one alternative of each.
    """

    def __init__(self, where: str, **keywords: Any) -> None:
        super().__init__(keywords)
        self.where = where  # its path, as in a $ref, for messages
        self.choices: List[List[Tuple["Schema", ...]]] = []
        self._opposite: Optional["Schema"] = None

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def without(self, keyword: str) -> "Schema":
        copy = Schema(self.where, **{name: value for name, value in self.items() if name != keyword})
        copy.choices = self.choices
        return copy

    @property
    def opposite(self) -> "Schema":
        if self._opposite is None:
            self._opposite = Schema(self.where, **{"not": self})
            self._opposite._opposite = self
        return self._opposite


Parts = Tuple[Schema, ...]  # a value must be valid for all of them
Found = Callable[[str, str], Optional[bool]]


class Reader:
    """Reads the parts of one document, each once, so that a part that refers to itself contains itself."""

    def __init__(self, root: Any, path: str) -> None:
        """path: of the document, for messages."""
        self._root, self._path = root, path
        self._read: Dict[int, Schema] = {}  # by the identities of parts
        self._named: Optional[Dict[str, Any]] = None  # parts by $id and anchor
        self.schema = self.read(root, path + "#")

    def read(self, part: Any, where: str) -> Schema:
        """Return a part as a Schema. MerinoError for a value that a keyword cannot have."""
        if isinstance(part, bool):
            return Schema(where) if part else Schema(where, enum=[])
        if not isinstance(part, dict):
            raise refused(where, f"it is {shown(part)}, a schema is an object, true or false")
        if id(part) in self._read:
            return self._read[id(part)]
        schema = self._read[id(part)] = Schema(where)
        # 1. Other spellings: a list of items before draft 2020-12, a constant, and what states nothing.
        if isinstance(part.get("items"), list):
            part = dict(part, prefixItems=part["items"], items=part.get("additionalItems", True))
        if "const" in part and "enum" in part:
            schema.choices.append([(Schema(where, enum=[part["const"]]),)])
        elif "const" in part:
            part = dict(part, enum=[part["const"]])
        if part.get("additionalProperties") is True:
            part = {keyword: value for keyword, value in part.items() if keyword != "additionalProperties"}
        # 2. The values of keywords.
        for keyword in REFUSED:
            if keyword in part:
                raise refused(f"{where}/{keyword}", "this keyword is not supported")
        for keyword, (_, shape) in KEYWORDS.items():
            if keyword in part:
                schema[keyword] = self._value(shape, part[keyword], f"{where}/{keyword}")
        for bound in ("minimum", "maximum"):
            strict = "exclusive" + bound.capitalize()
            if isinstance(schema.get(strict), bool) and schema.pop(strict) and bound in schema:
                schema[strict] = schema.pop(bound)
        # 3. Choices.
        if "$ref" in part:
            schema.choices.append([(self.read(self._target(part["$ref"], f"{where}/$ref"),
                                              self._path + part["$ref"]),)])
        schema.choices += self._choices(schema)
        return schema

    def _value(self, shape: str, value: Any, where: str) -> Any:
        allowed, test = SHAPES.get(shape, ("", lambda _: True))
        if not test(value):
            what = "an empty list" if value == [] else shown(value)
            raise refused(where, f"it is {what}, must be {allowed}")
        if shape == "schema":
            return self.read(value, where)
        if shape == "types":
            return {*_listed(value), *["integer"] * ("number" in _listed(value))}
        if shape in ("schemas", "items"):
            return [self.read(part, f"{where}/{index}") for index, part in enumerate(value)]
        if shape == "needed":
            return {name: Schema(where, required=self._value("names", part, where)) if isinstance(part, list)
                    else self.read(part, f"{where}/{name}") for name, part in value.items()}
        return {name: self.read(part, f"{where}/{name}") for name, part in value.items()} \
            if shape == "members" else value

    def _choices(self, schema: Schema) -> List[List[Parts]]:
        """Remove the keywords that combine schemas, and return what they mean."""
        every, some, one = (schema.pop(keyword, []) for keyword in ("allOf", "anyOf", "oneOf"))
        condition = schema.pop("if", None)
        then, other = (schema.pop(keyword, Schema(schema.where)) for keyword in ("then", "else"))
        choices = [[tuple(every)]] if every else []
        choices += [[(part,) for part in some]] if some else []
        if one:
            choices.append([(part, *[rival.opposite for rival in one if rival is not part]) for part in one])
        if condition is not None:
            choices.append([(condition, then), (condition.opposite, other)])
        for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
            for name, needed in schema.pop(keyword, {}).items():
                absent = Schema(needed.where, properties={name: Schema(needed.where, enum=[])})
                choices.append([(absent,), (Schema(needed.where, required=[name]), needed)])
        return choices

    def _target(self, ref: Any, where: str) -> Any:
        """Return the part that a reference inside the document names by a pointer, an anchor or a part's $id."""
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


def refused(where: str, what: str) -> MerinoError:
    return MerinoError(f"the JSON schema cannot be a constraint: {where}: {what}. Change that part.")


def _listed(value: Any) -> List[Any]:
    return value if isinstance(value, list) else [value]


def is_a(kind: str, value: Any) -> bool:
    """Return whether a JSON value is of a schema's type."""
    if isinstance(value, bool) or kind == "boolean":
        return kind == "boolean" and isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) or isinstance(value, float) and value.is_integer()
    kinds: Dict[str, Any] = {"number": (int, float), "string": str, "array": list, "object": dict, "null": type(None)}
    return isinstance(value, kinds[kind])


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def identity(value: Any) -> str:
    """Return a text that two values share exactly if they are equal in JSON Schema: 1 and 1.0 are, and so are objects
    whose keys are in another order."""
    def plain(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {key: plain(member) for key, member in inner.items()}
        if isinstance(inner, list):
            return [plain(item) for item in inner]
        return int(inner) if isinstance(inner, float) and inner.is_integer() else inner
    return json.dumps(plain(value), sort_keys=True)


def different(values: Iterable[Any]) -> List[Any]:
    """Return the values, each of several equal ones once."""
    return list({identity(value): value for value in reversed(list(values))}.values())[::-1]


def all_known(results: Iterable[Optional[bool]]) -> Optional[bool]:
    """Return the conjunction of results, where None is unknown."""
    known = list(results)
    return False if False in known else None if None in known else True


def _not(result: Optional[bool]) -> Optional[bool]:
    return None if result is None else not result


def _any(results: Iterable[Optional[bool]]) -> Optional[bool]:
    return _not(all_known(map(_not, results)))


def fits(value: Any, schema: Schema, found: Found, alone: bool = False) -> Optional[bool]:
    """Return whether a value is valid for a schema; None if this function does not know. found: whether a pattern is
    found in a text. alone: without the choices of the schema, and without what it must not match."""
    results: List[Optional[bool]] = [] if alone else [
        _any(all_known(fits(value, part, found) for part in parts) for parts in choice) for choice in schema.choices]
    for keyword, part in schema.items():
        kind = KEYWORDS[keyword][0]
        if kind and not is_a(kind, value):
            continue
        if keyword == "type":
            results.append(any(is_a(name, value) for name in part))
        elif keyword in ("enum", EXCEPT):
            results.append((identity(value) in map(identity, part)) == (keyword == "enum"))
        elif keyword == "not":
            results += [] if alone else [_not(fits(value, part, found))]
        elif keyword in LIMITS:
            results.append(LIMITS[keyword](value if kind == "number" else len(value), part))
        elif keyword == "pattern":
            results.append(found(part, value))
        elif keyword == NOT_PATTERN:
            results.append(_not(found(part, value)))
        elif keyword in ("format", "multipleOf"):
            results.append(None)
        elif keyword == "required":
            results += [name in value for name in part]
        elif keyword == "uniqueItems":
            results += [len(different(value)) == len(value)] if part else []
    if isinstance(value, list):
        first, others = schema.get("prefixItems", []), schema.get("items")
        parts = [*first, *[others] * (len(value) - len(first))]
        results += [fits(item, part, found) for part, item in zip(parts, value) if part is not None]  # noqa: B905
    if isinstance(value, dict):
        results += [result for name, member in value.items() for result in _of_member(name, member, schema, found)]
    return all_known(results)


def _of_member(name: str, member: Any, schema: Schema, found: Found) -> List[Optional[bool]]:
    """Return what each keyword of an object says of one member."""
    matching = [(found(text, name), part) for text, part in schema.get("patternProperties", {}).items()]
    results = [_any([_not(match), fits(member, part, found)]) for match, part in matching]
    if name in schema.get("properties", {}):
        results.append(fits(member, schema["properties"][name], found))
    elif "additionalProperties" in schema:
        other = fits(member, schema["additionalProperties"], found)
        results.append(_any([*[match for match, _ in matching], other]))
    if "propertyNames" in schema:
        results.append(fits(name, schema["propertyNames"], found))
    return results
