"""The keywords of JSON schema that a constraint takes, and what they mean without an automaton."""
import json
from typing import Any, Dict, List, Sequence, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.pattern import FORMATS
from merino_runtime.io.json_shape import shown

DESCRIBING = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$anchor", "deprecated",
              "readOnly", "writeOnly", "$defs", "definitions", "nullable"}  # OpenAPI's: null is never written then
# Of JSON schema: texts that are of none are refused. A name that it does not know, such as entity_id, only describes.
OTHER_FORMATS = {"duration", "hostname", "idn-hostname", "idn-email", "ipv6", "uri", "uri-reference", "uri-template",
                 "iri", "iri-reference", "json-pointer", "relative-json-pointer", "regex"}
BY_TYPE: Dict[str, Tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), "boolean": (), "null": (),
}
WHOLE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")  # stand alone, or beside a type and nothing else
KNOWN = {"type", *WHOLE, *(keyword for keywords in BY_TYPE.values() for keyword in keywords)}


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def refused(where: str, what: str) -> MerinoError:
    return MerinoError(f"the JSON schema cannot be a constraint: {where}: {what}. Change that part.")


def describes(keyword: str, schema: Dict[str, Any]) -> bool:
    """Return whether a keyword states nothing of which values are valid."""
    value = schema.get(keyword)
    return keyword in DESCRIBING or keyword == "uniqueItems" and value is False or (
        keyword == "format" and isinstance(value, str) and value not in FORMATS and value not in OTHER_FORMATS)


def as_one(schemas: Sequence[Any], here: str) -> Dict[str, Any]:
    """Return the schemas of an allOf, where no keyword has two values, and one alone describes what an object or a list
    holds."""
    merged: Dict[str, Any] = {}
    inside: Dict[str, int] = {}
    for index, schema in enumerate(schemas):
        if not isinstance(schema, dict):
            raise refused(f"{here}/{index}", f"it is {shown(schema)}, beside others it must be an object")
        for keyword in [key for key in schema if not describes(key, schema)]:
            kind = next((kind for kind in ("object", "array") if keyword in BY_TYPE[kind]), "")
            if merged.setdefault(keyword, schema[keyword]) != schema[keyword] or kind and inside.setdefault(
                    kind, index) != index:
                raise refused(f"{here}/{index}/{keyword}", "another schema beside it has this keyword, or one that it "
                                                           "depends on, which is not supported")
    return merged


def is_a(kind: str, value: Any) -> bool:
    """Return whether a value is of a schema's type."""
    if isinstance(value, bool) or kind == "boolean":
        return kind == "boolean" and isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) or isinstance(value, float) and value.is_integer()
    kinds: Dict[str, Any] = {"number": (int, float), "string": str, "array": list, "object": dict, "null": type(None)}
    return isinstance(value, kinds[kind])


def types_of(schema: Dict[str, Any], where: str, keywords: Sequence[str]) -> List[str]:
    """Return the types of a schema; none: any. Without `type`, the other keywords determine the type."""
    declared = schema.get("type")
    if declared is None and "type" not in schema:
        return [kind for kind in ("object", "array", "string", "number") if set(BY_TYPE[kind]) & set(keywords)]
    kinds: List[Any] = declared if isinstance(declared, list) else [declared]
    if not kinds or any(not isinstance(kind, str) or kind not in BY_TYPE for kind in kinds):
        raise refused(f"{where}/type", f"it is {shown(declared)}, allowed: {', '.join(BY_TYPE)}, or a list of them")
    return [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]


def bound_of(schema: Dict[str, Any], keyword: str, where: str) -> Any:
    value = schema.get(keyword)
    if keyword in schema and not is_a("number", value):
        raise refused(f"{where}/{keyword}", f"it is {shown(value)}, must be a number")
    return value


def counts_of(schema: Dict[str, Any], low: str, high: str, where: str) -> Tuple[int, int]:
    """Return the least and the most of two keywords; most -1: no limit. Raise MerinoError for wrong values."""
    for keyword in (low, high):
        value = schema.get(keyword, 0)
        if not is_a("integer", value) or value < 0:
            raise refused(f"{where}/{keyword}", f"it is {shown(value)}, must be an integer, 0 or more")
    least, most = int(schema.get(low, 0)), int(schema.get(high, -1))
    if 0 <= most < least:
        raise refused(f"{where}/{high}", f"nothing satisfies it: it is {most}, and {low} is {least}")
    return least, most
