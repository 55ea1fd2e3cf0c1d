"""Constrained decoding: a JSON schema, a regular expression, a grammar or a list of tools limits the tokens that may
follow.

A grammar is compiled once; `start()` returns the state of one text. A state returns the tokens that may follow
(`allowed`) and those that must (`forced`), and advances by the chosen one (`advance`).
"""
import functools
import json
import re
from typing import TYPE_CHECKING, Any, Dict, Iterable, NamedTuple, Optional, Union

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import MOST_NODES, Automaton
from merino_runtime.generation.constraints.gbnf import gbnf
from merino_runtime.generation.constraints.guidance import LARK, GuidedState, Json, Other, Texts, guided
from merino_runtime.generation.constraints.keywords import KEYWORDS
from merino_runtime.generation.constraints.pattern import regex
from merino_runtime.generation.constraints.schema import schema_node
from merino_runtime.generation.constraints.tokens import Grammar, Trie
from merino_runtime.io.json_file import value_of
from merino_runtime.io.json_shape import shown
from merino_runtime.sampling import Form

if TYPE_CHECKING:
    from merino_runtime.generation.text import Tokenizer

Compiled = Union[Grammar, GuidedState]
KEPT_GRAMMARS = 16  # of a tokenizer, with the masks that they have computed
CHOICES = ("auto", "required")
NO_ARGUMENTS = {"type": "object", "additionalProperties": False}
# With one of these keywords the parameters of a tool allow arguments.
STATED = {"$ref", "const"} | {keyword for keyword, (kind, _) in KEYWORDS.items() if kind in ("", "object")} - {"type"}


class Style(NamedTuple):
    """Text before a call's name, between the name and the arguments, and behind them."""
    before: str
    between: str
    after: str


STYLES = {
    "json": Style('{"name":', ',"arguments":', "}"),
    "hermes": Style('<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>"),  # Qwen, SmolLM3
}


def compile_schema(schema: Any, tokenizer: "Tokenizer", eos_ids: Iterable[int]) -> Compiled:
    """Compile a JSON schema. MerinoError names a keyword that cannot be expressed, and its path."""
    return compile_form(Form("json", schema), tokenizer, eos_ids)


def compile_form(form: Form, tokenizer: "Tokenizer", eos_ids: Iterable[int]) -> Compiled:
    """Compile a schema, a regular expression, a grammar or a choice. MerinoError for what cannot be expressed."""
    return _compiled(_texts_of(form), tokenizer, eos_ids)


def compile_tools(tools: Any, tool_choice: Any, tokenizer: "Tokenizer", eos_ids: Iterable[int], style: str = "json",
                  other: Optional[Form] = None) -> Compiled:
    """Compile a grammar of calls of the tools. tool_choice: `required`, a tool, or `auto`, which also allows a text of
    the form `other`, or without that one which does not begin like a call. style: of STYLES."""
    before, between, after = STYLES[style]
    texts: Texts = [[before + json.dumps(name) + between, parameters, after]
                    for name, parameters in _allowed(tools, tool_choice).items()]
    if tool_choice == "auto":
        texts += _texts_of(other) if other else [[Other(before[0])]]
    return _compiled(texts, tokenizer, eos_ids)


def _texts_of(form: Form) -> Texts:
    if form.kind == "choice":
        return [[text] for text in form.value]
    return [[Json(form.value) if form.kind == "json" else form]]


def _compiled(texts: Texts, tokenizer: "Tokenizer", eos_ids: Iterable[int]) -> Compiled:
    """Return a grammar from the tokenizer's cache, or compile it: by the built-in automaton, which behaves alike on
    every board, or by llguidance if the automaton cannot express it."""
    try:
        written = json.dumps(texts)
        value_of(written)
    except (TypeError, ValueError, RecursionError) as error:
        raise MerinoError(f"the JSON schema, or the list of tools, is not JSON: {error}. Give values that JSON "
                          "has.") from error
    key = written, tuple(eos_ids)
    kept: Dict[Any, Compiled] = tokenizer.kept.setdefault("grammars", {})
    grammar = kept.pop(key, None)
    if grammar is None or isinstance(grammar, Grammar) and grammar.automaton.size > MOST_NODES // 2:
        trie = tokenizer.kept.get("trie") or tokenizer.kept.setdefault("trie", Trie(tokenizer))
        automaton = Automaton(trie.spelled)
        try:
            grammar = Grammar(trie, automaton, _node(automaton, texts), key[1])
        except RecursionError as error:
            raise MerinoError("the constraint is nested too deeply. Give a flatter one.") from error
        except MerinoError as refusal:
            grammar = guided(trie, key[1], texts, refusal)
    while len(kept) >= KEPT_GRAMMARS:
        kept.pop(next(iter(kept)), None)
    kept[key] = grammar
    return grammar


def _node(make: Automaton, texts: Texts) -> int:
    """Return the expression of texts."""
    def node(part: Any) -> int:
        if isinstance(part, Json):
            return schema_node(make, part.schema, part.path)
        if isinstance(part, Form):
            refuse = functools.partial(_refused, part.kind)
            if part.value.startswith(LARK):
                raise refuse(f"it begins with {LARK}, so it is for llguidance")
            return (regex if part.kind == "regex" else gbnf)(make, part.value, refuse)
        if isinstance(part, Other):
            first = ord(part.first)
            any_char = make.alt(make.code_points(0, 0xD7FF), make.code_points(0xE000, 0x10FFFF))
            other = make.alt(make.code_points(0, first - 1), make.code_points(first + 1, 0xD7FF),
                             make.code_points(0xE000, 0x10FFFF))
            return make.seq(other, make.rep(any_char))
        return make.lit(part.encode())
    whole = make.alt(*[make.seq(*map(node, parts)) for parts in texts])
    if not make.matches(whole):
        raise MerinoError("the constraint allows no text that the tokenizer has tokens for. Change it.")
    return whole


def _refused(kind: str, why: str) -> MerinoError:
    return MerinoError(f"the {kind} cannot be a constraint: {why}. Change that part.")


def _allowed(tools: Any, tool_choice: Any) -> Dict[str, Json]:
    """Return the parameters of the tools that may be called, by name. MerinoError for what is no list of tools, and for
    a choice that is none of them."""
    if not isinstance(tools, list) or not tools:
        what = "an empty list" if tools == [] else shown(tools)
        raise MerinoError(f"tools are {what}, allowed is a list of at least one: "
                          '{"type": "function", "function": {"name": ..., "parameters": {...}}}.')
    known: Dict[str, Json] = {}
    for index, tool in enumerate(tools):
        path, function = f"tools[{index}]", tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise MerinoError(f'{path} is no function. Allowed: {{"type": "function", "function": {{"name": ..., '
                              '"parameters": {...}}}.')
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not re.match(r"[\w.:-]{1,64}\Z", name, re.ASCII):
            raise MerinoError(f"{path}.function.name is {shown(name)}, allowed are 1 to 64 letters, digits and _ . : -")
        if name in known:
            raise MerinoError(f"tools have the name {json.dumps(name)} twice. Give each a name of its own.")
        if parameters is not None and not isinstance(parameters, dict):
            raise MerinoError(f"{path}.function.parameters is {shown(parameters)}, must be a JSON schema, an object.")
        stated = {keyword for keyword, value in (parameters or {}).items()
                  if keyword in STATED and value not in ([], {}, False)}
        known[name] = Json(parameters if stated else NO_ARGUMENTS, path + ".function.parameters")
    if isinstance(tool_choice, dict):
        inner = tool_choice.get("function", tool_choice)
        chosen = inner.get("name") if isinstance(inner, dict) else None
        if chosen not in known:
            raise MerinoError(f"tool_choice is the tool {shown(chosen)}, allowed: {', '.join(known)}.")
        return {chosen: known[chosen]}
    if tool_choice not in CHOICES:
        raise MerinoError(f"tool_choice is {shown(tool_choice)}, allowed: {', '.join(CHOICES)}, or a tool as "
                          '{"type": "function", "function": {"name": ...}}.')
    return known
