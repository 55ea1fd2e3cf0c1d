"""Compiles a request's JSON schema or tools to a grammar that the completion follows."""
import threading
from typing import Any, Dict, Optional, Sequence

from merino_runtime.errors import MerinoError
from merino_runtime.serving import fields
from merino_runtime.serving.fields import Body
from merino_runtime.serving.prompts import Prompts
from merino_runtime.serving.requests import RefusedError

STYLE = "hermes"  # of tool calls, as `prompts` describes them to the model
FORMATS = ("text", "json_object", "json_schema")
_compiling = threading.Lock()  # requests share the tokenizer, which keeps grammars for later requests


def schema_of(body: Body) -> Any:
    """Read OpenAI's response_format -> a schema, True for any JSON object, None for text."""
    response_format = fields.an_object(body, "response_format")
    kind = response_format.get("type", "text")
    if kind not in FORMATS:
        raise fields.wrong("response_format.type", kind, ", ".join(FORMATS))
    if kind == "json_schema":
        schema = fields.an_object(response_format, "json_schema").get("schema")
        if not isinstance(schema, (dict, bool)):
            raise fields.wrong("response_format.json_schema.schema", schema, "a JSON schema")
        return schema
    return True if kind == "json_object" else None


def schema_of_format(body: Body) -> Any:
    """Read Ollama's `format` -> as `schema_of`."""
    schema = body.get("format")
    if schema in (None, ""):
        return None
    if schema != "json" and not isinstance(schema, dict):
        raise fields.wrong("format", schema, '"json", or a JSON schema')
    return True if schema == "json" else schema


def grammar_of(prompts: Prompts, schema: Any, tools: Sequence[Dict[str, Any]] = (), choice: Any = "auto",
               thinks: bool = False) -> Optional[Any]:
    """Return the grammar of a completion; None if it is unconstrained. With both a schema and tools it is a call or
    JSON. thinks: whether it may begin with thinking, so that only a required call is constrained. Raise RefusedError
    for a schema that cannot be expressed."""
    if schema is None and (not tools or (choice == "auto" and thinks)):
        return None
    from merino_runtime.generation import constraints

    tokenizer, stop_ids = prompts.tokenizer, prompts.bundle.stop_ids
    try:
        with _compiling:
            if tools:
                described = [{"type": "function", "function": tool["function"]} for tool in tools]
                return constraints.compile_tools(described, choice, tokenizer, stop_ids, style=STYLE,
                                                 or_schema={"type": "object"} if schema is True else schema)
            if schema is True:
                return constraints.compile_json(tokenizer, stop_ids)
            return constraints.compile_schema(schema, tokenizer, stop_ids)
    except MerinoError as error:
        raise RefusedError(str(error), param="tools" if tools else "response_format") from error
