"""Constrained decoding: a JSON schema or a list of tools limits the tokens that may follow.

A grammar is compiled once; `start()` returns the state of one text. A state returns the tokens that may follow
(`allowed`) and those that must (`forced`), and advances by the chosen one (`advance`).
"""
import json
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Union

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import MOST_NODES, Automaton
from merino_runtime.generation.constraints.closed import closed_schema
from merino_runtime.generation.constraints.guidance import COMPACT, Guided, guided
from merino_runtime.generation.constraints.keywords import BY_TYPE, IN_PLACE, refused
from merino_runtime.generation.constraints.schema import any_object, schema_node
from merino_runtime.generation.constraints.tokens import Grammar, Trie
from merino_runtime.io.json_file import value_of
from merino_runtime.io.json_shape import shown

if TYPE_CHECKING:
    from merino_runtime.generation.text import Tokenizer

Compiled = Union[Grammar, Guided]
KEPT_GRAMMARS = 16  # of a tokenizer, with the masks that they have computed
CHOICES = ("auto", "required")
STATED = {*BY_TYPE["object"], *IN_PLACE, "enum", "const"}  # with one of these a tool has arguments


class Style(NamedTuple):
    """Text before a call's name, between the name and the arguments, and behind them."""
    before: str
    between: str
    after: str


STYLES = {
    "json": Style('{"name":', ',"arguments":', "}"),
    "hermes": Style('<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>"),  # Qwen, SmolLM3
}


class Tool(NamedTuple):
    name: str
    parameters: Optional[Dict[str, Any]]  # None: there are none
    path: str  # of the parameters, for messages


def compile_schema(schema: Any, tokenizer: "Tokenizer", eos_ids: Iterable[int]) -> Compiled:
    """Compile a JSON schema. MerinoError names a keyword that cannot be expressed, and its path."""
    return _grammar(("schema", _plain(schema, "the JSON schema")), tokenizer, eos_ids,
                    lambda make: schema_node(make, schema),
                    lambda: {"schema": closed_schema(schema)} if isinstance(schema, dict) else {})


def compile_json(tokenizer: "Tokenizer", eos_ids: Iterable[int]) -> Compiled:
    """Compile a grammar of any JSON object, of bounded depth."""
    return _grammar(("json",), tokenizer, eos_ids, any_object, dict)


def compile_tools(tools: Any, tool_choice: Any, tokenizer: "Tokenizer", eos_ids: Iterable[int], style: str = "json",
                  or_schema: Any = None) -> Compiled:
    """Compile a grammar of calls of the tools. tool_choice: `required`, a tool, or `auto`, which also allows a text
    that does not begin like a call, or with or_schema JSON that is valid for it. style: of STYLES."""
    form, allowed = STYLES[style], tools_of(tools, tool_choice)
    key = ("tools", _plain(tools, "the list of tools"), json.dumps(tool_choice, sort_keys=True), style,
           _plain(or_schema, "the JSON schema"))

    def build(make: Automaton) -> int:
        calls = []
        for tool in allowed:
            arguments = make.lit(b"{}") if tool.parameters is None else schema_node(make, tool.parameters, tool.path)
            begin = form.before + json.dumps(tool.name) + form.between
            calls.append(make.seq(make.lit(begin.encode()), arguments, make.lit(form.after.encode())))
        if tool_choice == "auto" and or_schema is not None:
            calls.append(schema_node(make, or_schema))
        elif tool_choice == "auto":
            first = ord(form.before[0])
            any_char = make.alt(make.code_points(0, 0xD7FF), make.code_points(0xE000, 0x10FFFF))
            other = make.alt(make.code_points(0, first - 1), make.code_points(first + 1, 0xD7FF),
                             make.code_points(0xE000, 0x10FFFF))
            calls.append(make.seq(other, make.rep(any_char)))
        return make.alt(*calls)

    return _grammar(key, tokenizer, eos_ids, build,
                    lambda: {"lark": tools_source(form, allowed, tool_choice == "auto", or_schema)})


def _plain(value: Any, what: str) -> str:
    """Its JSON. MerinoError where it has none."""
    try:
        text = json.dumps(value)
        value_of(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise MerinoError(f"{what} is not JSON: {error}. Give values that JSON has.") from error
    return text


def _grammar(key: Any, tokenizer: "Tokenizer", eos_ids: Iterable[int], build: Callable[[Automaton], int],
             source: Callable[[], Dict[str, Any]]) -> Compiled:
    """Return a grammar from the tokenizer's cache, or compile it. source: the same for llguidance; empty if it cannot
    express it."""
    key = (*key, tuple(eos_ids))
    kept: Dict[Any, Compiled] = tokenizer.kept.setdefault("grammars", {})
    grammar = kept.pop(key, None)
    if grammar is None or isinstance(grammar, Grammar) and grammar.automaton.size > MOST_NODES // 2:
        trie = tokenizer.kept.get("trie") or tokenizer.kept.setdefault("trie", Trie(tokenizer))
        automaton = Automaton(trie.spelled)
        try:
            grammar = Grammar(trie, automaton, build(automaton), key[-1])
        except RecursionError as error:
            raise MerinoError("the JSON schema is nested too deeply. Give a flatter one.") from error
        except MerinoError as refusal:
            try:
                described = source()
            except MerinoError:
                raise refusal  # noqa: B904
            if not described or described.get("schema") is False:
                raise
            grammar = guided(trie, key[-1], described, refusal)
    while len(kept) >= KEPT_GRAMMARS:
        kept.pop(next(iter(kept)), None)
    kept[key] = grammar
    return grammar


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
    stated = {keyword for keyword, value in (parameters or {}).items() if keyword in STATED and value not in ([], {})}
    none = not stated - {"additionalProperties"} and not (parameters or {}).get("additionalProperties")
    return Tool(name, None if none else parameters, path + ".function.parameters")


def tools_source(form: Style, tools: Sequence[Tool], or_other: bool, schema: Optional[Dict[str, Any]] = None) -> str:
    """Calls in llguidance's own language of grammars. or_other: or JSON that the schema takes, without one any text."""
    calls, rules = [], []
    for index, tool in enumerate(tools):
        parameters = tool.parameters or {"type": "object", "additionalProperties": False}
        rules.append(_json_rule(f"a{index}", parameters, tool.path))
        begin = form.before + json.dumps(tool.name) + form.between
        calls.append(f"{json.dumps(begin)} a{index} {json.dumps(form.after)}")
    if or_other and schema is not None:
        calls.append("other")
        rules.append(_json_rule("other", schema, ""))
    elif or_other:
        calls.append(f"/[^{form.before[0]}](.|\\n)*/")
    return f"start: {' | '.join(calls)}\n" + "".join(rules)


def _json_rule(name: str, schema: Any, path: str) -> str:
    closed = closed_schema(schema, path)
    if closed is False:
        raise refused(path + "#", "nothing satisfies it")
    return f"{name}: %json {json.dumps(dict(closed, **{'x-guidance': COMPACT}))}\n"
