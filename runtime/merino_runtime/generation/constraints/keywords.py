"""The keywords of JSON schema, what their values must be, and JSON values compared as JSON Schema compares them.

Unknown keywords are annotations, so they are ignored.
"""
import json
from typing import Any, Dict, Iterable, List, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import shown

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
BY_TYPE: Dict[str, Tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
               "maxProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
NOT_PATTERN, EXCEPT = " not pattern", " not enum"  # keywords of our own: what a string and a value must not be
IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "dependencies", "dependentRequired", "dependentSchemas", "$ref")
# They state something, and nothing here reads them.
REFUSED = ("$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems")


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


def refused(where: str, what: str) -> MerinoError:
    return MerinoError(f"the JSON schema cannot be a constraint: {where}: {what}. Change that part.")


def is_a(kind: str, value: Any) -> bool:
    """Return whether a value is of a schema's type."""
    if isinstance(value, bool) or kind == "boolean":
        return kind == "boolean" and isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) or isinstance(value, float) and value.is_integer()
    kinds: Dict[str, Any] = {"number": (int, float), "string": str, "array": list, "object": dict, "null": type(None)}
    return isinstance(value, kinds[kind])


def types_of(schema: Dict[str, Any], where: str) -> List[str]:
    declared = schema["type"]
    kinds: List[Any] = declared if isinstance(declared, list) else [declared]
    if not kinds or any(not isinstance(kind, str) or kind not in TYPES for kind in kinds):
        raise refused(f"{where}/type", f"it is {shown(declared)}, allowed: {', '.join(TYPES)}, or a list of them")
    return kinds


def list_of(schema: Dict[str, Any], keyword: str, where: str, least: int = 0) -> List[Any]:
    """Return the value of a keyword that must be a list; [] without the keyword."""
    value = schema.get(keyword, [])
    if not isinstance(value, list) or keyword in schema and len(value) < least:
        what = "an empty list" if value == [] else shown(value)
        raise refused(f"{where}/{keyword}", f"it is {what}, must be a list" + " of at least one" * bool(least))
    return value


def names_of(schema: Dict[str, Any], keyword: str, where: str) -> List[str]:
    value = list_of(schema, keyword, where)
    if any(not isinstance(name, str) for name in value):
        raise refused(f"{where}/{keyword}", f"it is {shown(value)}, must be a list of strings")
    return value


def object_of(schema: Dict[str, Any], keyword: str, where: str) -> Dict[str, Any]:
    value = schema.get(keyword, {})
    if not isinstance(value, dict):
        raise refused(f"{where}/{keyword}", f"it is {shown(value)}, must be an object")
    return value


def bounds_of(schema: Dict[str, Any], where: str) -> List[Tuple[str, Any]]:
    """Return the bounds of numbers: minimum, maximum, exclusiveMinimum and exclusiveMaximum, which is true or false in
    draft 4."""
    bounds = []
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value, strict = schema.get(keyword), schema.get("exclusive" + keyword[:1].upper() + keyword[1:])
        if keyword not in schema or keyword.startswith("ex") and isinstance(value, bool):
            continue
        if not is_a("number", value):
            raise refused(f"{where}/{keyword}", f"it is {shown(value)}, must be a number")
        name = "exclusive" + keyword[:1].upper() + keyword[1:] if strict is True else keyword
        bounds.append((name, value))
    return bounds


def count_of(schema: Dict[str, Any], keyword: str, where: str) -> int:
    value = schema[keyword]
    if not is_a("integer", value) or value < 0:
        raise refused(f"{where}/{keyword}", f"it is {shown(value)}, must be an integer, 0 or more")
    return int(value)


def holds(name: str, bound: Any, value: Any) -> bool:
    """Return whether a number keeps a bound of `bounds_of`."""
    if name in ("minimum", "exclusiveMinimum"):
        return value > bound or value == bound and name == "minimum"
    return value < bound or value == bound and name == "maximum"


def items_of(schema: Dict[str, Any], where: str) -> Tuple[List[Tuple[Any, str]], Tuple[Any, str]]:
    """Return the schemas of the first items and of the others, each with its path. `items` may be the list of the first
    ones, as before draft 2020-12."""
    if isinstance(schema.get("items"), list):
        first, keyword, others = list_of(schema, "items", where), "items", "additionalItems"
    else:
        first, keyword, others = list_of(schema, "prefixItems", where), "prefixItems", "items"
    parts = [(part, f"{where}/{keyword}/{index}") for index, part in enumerate(first)]
    return parts, (schema.get(others, True), f"{where}/{others}")
