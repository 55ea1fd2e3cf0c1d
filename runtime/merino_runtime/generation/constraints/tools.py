"""A call of one of several tools, as OpenAI describes tools, in the form that a chat template teaches its model."""
import json
import re
from typing import Any, Dict, List, NamedTuple, Optional

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import shown


class Style(NamedTuple):
    """Text before a call's name, between the name and the arguments, and behind them."""
    before: str
    between: str
    after: str


STYLES = {
    "json": Style('{"name":', ',"arguments":', "}"),
    "hermes": Style('<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>"),  # Qwen, SmolLM3
}
CHOICES = ("auto", "required")


class Tool(NamedTuple):
    name: str
    parameters: Optional[Dict[str, Any]]  # None: there are none
    path: str  # of the parameters, for messages


def tools_of(tools: Any, tool_choice: Any) -> List[Tool]:
    """Those that may be called. MerinoError for what is no list of tools, and for a choice that is none of them."""
    if not isinstance(tools, list) or not tools:
        what = "an empty list" if tools == [] else shown(tools)
        raise MerinoError(f"tools are {what}, allowed is a list of at least one: "
                          '{"type": "function", "function": {"name": ..., "parameters": {...}}}.')
    known = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = [tool.name for tool in known]
    for name in names:
        if names.count(name) > 1:
            raise MerinoError(f"tools have the name {json.dumps(name)} twice. Give each a name of its own.")
    if isinstance(tool_choice, dict):
        inner = tool_choice.get("function", tool_choice)
        chosen = inner.get("name") if isinstance(inner, dict) else None
        if chosen not in names:
            raise MerinoError(f"tool_choice is the tool {shown(chosen)}, allowed: {', '.join(names)}.")
        return [tool for tool in known if tool.name == chosen]
    if tool_choice not in CHOICES:
        raise MerinoError(f"tool_choice is {shown(tool_choice)}, allowed: {', '.join(CHOICES)}, or a tool as "
                          '{"type": "function", "function": {"name": ...}}.')
    return known


def _tool(tool: Any, path: str) -> Tool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise MerinoError(f'{path} is no function. Allowed: {{"type": "function", "function": {{"name": ..., '
                          '"parameters": {...}}}.')
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not re.match(r"[\w.:-]{1,64}\Z", name, re.ASCII):
        raise MerinoError(f"{path}.function.name is {shown(name)}, allowed are 1 to 64 letters, digits and _ . : -")
    if parameters is not None and not isinstance(parameters, dict):
        raise MerinoError(f"{path}.function.parameters is {shown(parameters)}, must be a JSON schema, an object.")
    none = not parameters or not (parameters.get("properties") or parameters.get("additionalProperties")
                                  or set(parameters) & {"$ref", "anyOf", "oneOf", "allOf", "enum", "const"})
    return Tool(name, None if none else parameters, path + ".function.parameters")
