"""A JSON schema as an expression of compact JSON: fixed keys in order, without spaces. What cannot be expressed is
refused by its keyword and its path; only descriptions are left out silently.

All text that matches is valid. Valid text that does not match: other spellings, keys in another order, keys that
`properties` does not name beside those that it names, and numbers of more than 18 digits.
"""
import re
from typing import Any, Callable, Dict, List, Sequence, Tuple

from merino_runtime.generation.constraints.automaton import NOTHING, Automaton
from merino_runtime.generation.constraints.keywords import (
    BY_TYPE,
    KNOWN,
    WHOLE,
    as_one,
    bound_of,
    compact,
    counts_of,
    describes,
    is_a,
    refused,
    types_of,
)
from merino_runtime.generation.constraints.numerals import integer, number
from merino_runtime.generation.constraints.pattern import FORMATS, pattern
from merino_runtime.io.json_shape import shown

DEEPEST = 16  # levels of lists and objects where any JSON may stand
DEEPEST_SCHEMA = 64
MOST_UNIQUE = 256


def schema_node(automaton: Automaton, schema: Any, path: str = "") -> int:
    """Return the expression of a schema. Raise MerinoError for what cannot be expressed, or if nothing satisfies the
    schema. path: of the schema, for messages."""
    node = Reader(automaton, schema, path).node(schema, path + "#", 0)
    if node == NOTHING:
        raise refused(path + "#", "nothing satisfies it (or the tokenizer has no tokens to write it)")
    return node


def any_object(automaton: Automaton) -> int:
    return Reader(automaton, {}, "").any_of("object", DEEPEST)


class Reader:
    """One schema. `where` is the path of a part, as in a $ref."""

    def __init__(self, automaton: Automaton, root: Any, path: str) -> None:
        self.make, self._root, self._path = automaton, root, path
        self._of_ref: Dict[str, int] = {}
        self._open: List[str] = []  # refs that lead here

    def node(self, schema: Any, where: str, depth: int) -> int:
        if schema is False:
            return NOTHING
        if schema is True:
            return self.any_of("any", DEEPEST)
        if not isinstance(schema, dict):
            raise refused(where, f"it is {shown(schema)}, a schema is an object, true or false")
        if depth > DEEPEST_SCHEMA:
            raise refused(where, f"it is nested more than {DEEPEST_SCHEMA} levels")
        keywords = [keyword for keyword in schema if not describes(keyword, schema)]
        for keyword in keywords:
            if keyword not in KNOWN:
                raise refused(f"{where}/{keyword}", "this keyword is not supported")
        whole = [keyword for keyword in keywords if keyword in WHOLE]
        if whole:
            beside = [keyword for keyword in keywords if keyword not in (whole[0], "type")]
            if beside or "type" in keywords and whole[0] not in ("enum", "const"):
                other = beside[0] if beside else "type"
                raise refused(f"{where}/{other}", f"this keyword beside {whole[0]} is not supported")
            return self._whole(whole[0], schema, where, depth)
        kinds = types_of(schema, where, keywords)
        if not kinds:
            return self.any_of("any", DEEPEST)
        for keyword in keywords:
            if keyword != "type" and not any(keyword in BY_TYPE[kind] for kind in kinds):
                raise refused(f"{where}/{keyword}", f"this keyword is not of type {' or '.join(kinds)}")
        return self.make.alt(*[self._of_type(kind, schema, where, depth) for kind in kinds])

    def _whole(self, keyword: str, schema: Dict[str, Any], where: str, depth: int) -> int:
        value, here = schema[keyword], f"{where}/{keyword}"
        if keyword == "$ref":
            return self._ref(value, here, depth)
        if keyword == "const":
            value = [value]
        if not isinstance(value, list) or not value:
            what = "an empty list" if value == [] else shown(value)
            raise refused(here, f"it is {what}, must be a list of at least one")
        if keyword in ("enum", "const"):
            kinds = types_of(schema, where, ()) if "type" in schema else list(BY_TYPE)
            fitting = [constant for constant in value if any(is_a(kind, constant) for kind in kinds)]
            if not fitting:
                raise refused(here, f"no value of it is of type {' or '.join(kinds)}")
            return self.make.alt(*[self.make.lit(compact(constant)) for constant in fitting])
        if keyword == "allOf" and len(value) > 1:
            return self.node(as_one(value, here), here, depth + 1)
        if keyword == "oneOf":
            self._check_one(value, here)
        return self.make.alt(*[self.node(branch, f"{here}/{index}", depth + 1) for index, branch in enumerate(value)])

    def _ref(self, ref: Any, here: str, depth: int) -> int:
        target = self._target(ref, here)
        if ref in self._open:
            raise refused(here, f"{ref} contains itself, and recursion is not supported")
        if ref not in self._of_ref:
            self._open.append(ref)
            self._of_ref[ref] = self.node(target, self._path + ref, depth + 1)
            self._open.pop()
        return self._of_ref[ref]

    def _target(self, ref: Any, here: str) -> Any:
        if not isinstance(ref, str) or not re.match("#(/|\\Z)", ref):
            raise refused(here, f"it is {shown(ref)}, supported are references inside the schema, as #/$defs/name")
        target = self._root
        for part in ref.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            inner = target.get(part) if isinstance(target, dict) else None
            if isinstance(target, list) and part.isdigit() and int(part) < len(target):
                inner = target[int(part)]
            if inner is None:
                raise refused(here, f"{ref} is not in the schema")
            target = inner
        return target

    def _check_one(self, schemas: Sequence[Any], here: str) -> None:
        """oneOf means that no two match: shown by their types, or by a key that each requires with other values."""
        seen = [self._features_of(branch, f"{here}/{index}") for index, branch in enumerate(schemas)]
        for index, features in enumerate(seen):
            for other in seen[:index]:
                if not any(name in other and not values & other[name] for name, values in features.items()):
                    raise refused(here, "two of its schemas may match the same value. Write anyOf, or give each a "
                                        "required key with a const of its own")

    def _features_of(self, schema: Any, where: str) -> Dict[str, frozenset]:
        """Return what distinguishes values of a schema from others: types under "", and values of required keys."""
        for _ in range(DEEPEST_SCHEMA):
            if isinstance(schema, dict) and "$ref" in schema:
                schema = self._target(schema["$ref"], where)
        if not isinstance(schema, dict):
            return {}
        fixed = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(fixed, list):
            fitting = {kind for kind in BY_TYPE for constant in fixed if is_a(kind, constant)}
            return {"": frozenset(fitting - {"integer"}), "value": frozenset(compact(constant) for constant in fixed)}
        features = {}
        if "type" in schema:
            kinds = types_of(schema, where, ())
            features[""] = frozenset("number" if kind == "integer" else kind for kind in kinds)
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(required, list) or not isinstance(properties, dict):
            return features
        for name in required:
            inner = self._features_of(properties.get(name), where) if isinstance(name, str) else {}
            if "value" in inner:
                features["key " + name] = inner["value"]
        return features

    def _of_type(self, kind: str, schema: Dict[str, Any], where: str, depth: int) -> int:
        if kind == "object":
            return self._object(schema, where, depth)
        if kind == "array":
            return self._array(schema, where, depth)
        if kind == "string":
            return self._string(schema, where)
        if kind in ("integer", "number"):
            bounded: Callable = integer if kind == "integer" else number
            bounds = [bound_of(schema, keyword, where) for keyword in BY_TYPE["number"]]
            node = bounded(self.make, *bounds, lambda what: refused(where, what))
            if node == NOTHING:
                raise refused(where, f"no {kind} is within its bounds")
            return node
        return self.any_of(kind, 0)

    def _string(self, schema: Dict[str, Any], where: str) -> int:
        make, limits = self.make, counts_of(schema, "minLength", "maxLength", where)
        formats = [keyword for keyword in ("pattern", "format")
                   if keyword in schema and not describes(keyword, schema)]
        if not formats:
            return make.seq(make.lit(b'"'), make.text(*limits))
        keyword, value = formats[0], schema[formats[0]]
        beside = [other for other in ("format", "minLength", "maxLength")
                  if other in schema and other != keyword and not describes(other, schema)]
        if beside:
            raise refused(f"{where}/{beside[0]}", f"this keyword beside {keyword} is not supported")
        if not isinstance(value, str):
            raise refused(f"{where}/{keyword}", f"it is {shown(value)}, must be a string")
        if keyword == "format" and value not in FORMATS:
            raise refused(f"{where}/format", f"{shown(value)} is not supported, but {', '.join(sorted(FORMATS))} are")
        text = FORMATS[value] if keyword == "format" else value
        return pattern(make, text, lambda what: refused(f"{where}/{keyword}", what))

    def _object(self, schema: Dict[str, Any], where: str, depth: int) -> int:
        make, properties, required = self.make, schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise refused(f"{where}/properties", f"it is {shown(properties)}, must be an object")
        if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
            raise refused(f"{where}/required", f"it is {shown(required)}, must be a list of strings")
        others = schema.get("additionalProperties", True)
        least, most = counts_of(schema, "minProperties", "maxProperties", where)
        if not properties and not required:
            if least > 1:  # the keys of a text may be alike
                raise refused(f"{where}/minProperties", "more than 1 is not supported for keys that are not named")
            member = make.seq(self._key(), self.node(others, f"{where}/additionalProperties", depth + 1))
            return self._listed(b"{}", [], member, least, most)
        for keyword in ("minProperties", "maxProperties"):
            if keyword in schema:
                raise refused(f"{where}/{keyword}", "this keyword beside properties is not supported")
        names = [*properties, *[name for name in required if name not in properties]]
        members = []
        for name in names:
            inside = name in properties
            part = f"{where}/properties/{name}" if inside else f"{where}/additionalProperties"
            value = self.node(properties[name] if inside else others, part, depth + 1)
            if value == NOTHING and name in required:
                raise refused(part, "nothing satisfies it, and it is required")
            members.append((make.seq(make.lit(compact(name) + b":"), value), name in required))
        return self._members(members)

    def _members(self, members: Sequence[Tuple[int, bool]]) -> int:
        """members: each with whether it is required."""
        make = self.make
        first = rest = make.lit(b"}")  # what follows before the first member, and behind one
        for node, needed in reversed(members):
            first = make.alt(make.seq(node, rest), NOTHING if needed else first)
            rest = make.alt(make.seq(make.lit(b","), node, rest), NOTHING if needed else rest)
        return make.seq(make.lit(b"{"), first)

    def _key(self) -> int:
        return self.make.seq(self.make.lit(b'"'), self.make.text(), self.make.lit(b":"))

    def _array(self, schema: Dict[str, Any], where: str, depth: int) -> int:
        begin = schema.get("prefixItems", [])
        if not isinstance(begin, list):
            raise refused(f"{where}/prefixItems", f"it is {shown(begin)}, must be a list")
        first = [self.node(item, f"{where}/prefixItems/{index}", depth + 1) for index, item in enumerate(begin)]
        least, most = counts_of(schema, "minItems", "maxItems", where)
        if schema.get("uniqueItems") and not 0 <= most <= 1:
            node = self._unique(schema, least, most, where, depth)
        else:
            items = self.node(schema.get("items", True), f"{where}/items", depth + 1)
            node = self._listed(b"[]", first, items, least, most)
        if node == NOTHING:
            raise refused(where, "no list satisfies it")
        return node

    def _unique(self, schema: Dict[str, Any], least: int, most: int, where: str, depth: int) -> int:
        """Return a list of different values of an enum."""
        items: Any = schema.get("items")
        values = items.get("enum") if isinstance(items, dict) and "prefixItems" not in schema else None
        if not isinstance(values, list) or len(values) > MOST_UNIQUE:
            raise refused(f"{where}/uniqueItems",
                          f"it is supported for items with an enum of up to {MOST_UNIQUE} values")
        different = {compact(value): value for value in values}.values()
        parts = [self.node(dict(items, enum=[value]), f"{where}/items", depth + 1) for value in different]
        make = self.make
        listed = make.different(parts, least, most if most >= 0 else len(parts), make.lit(b","))
        return make.seq(make.lit(b"["), listed, make.lit(b"]"))

    def _listed(self, ends: bytes, first: Sequence[int], item: int, least: int, most: int) -> int:
        """Return a list of least to most parts that begins with `first`, then items; most -1: without limit."""
        make, begin = self.make, list(first) or [item]
        closing, comma = make.lit(ends[1:]), make.lit(b",")
        left = max(most - len(begin), 0) if most >= 0 else -1
        more = make.rep(make.seq(comma, item), max(least - len(begin), 0), left)
        tail = make.seq(more, closing)
        for index in range(len(begin) - 1, -1, -1):
            part = make.seq(comma, begin[index], tail) if index else make.seq(begin[index], tail)
            tail = make.alt(closing if index >= least else NOTHING, NOTHING if 0 <= most <= index else part)
        return make.seq(make.lit(ends[:1]), tail)

    def any_of(self, kind: str, deepest: int) -> int:
        """Any JSON of a type; `any`: of each."""
        kept = self.make.any_json
        node = kept.get((kind, deepest))
        if node is None:
            node = kept[kind, deepest] = self._made_any(kind, deepest)
        return node

    def _made_any(self, kind: str, deepest: int) -> int:
        make = self.make
        if kind == "any":
            kinds = [kind for kind in BY_TYPE if deepest or kind not in ("object", "array")]
            return make.alt(*[self.any_of(kind, deepest) for kind in kinds])
        if kind == "string":
            return make.seq(make.lit(b'"'), make.text())
        if kind == "boolean":
            return make.alt(make.lit(b"true"), make.lit(b"false"))
        if kind in ("integer", "number"):
            return number(make) if kind == "number" else integer(make)
        if kind == "null":
            return make.lit(b"null")
        value = self.any_of("any", deepest - 1)
        return self._listed(b"{}" if kind == "object" else b"[]", [],
                            make.seq(self._key(), value) if kind == "object" else value, 0, -1)
