"""Constrained decoding: a JSON schema or a list of tools limits the tokens that may follow.

A grammar is compiled once; `start()` returns the state of one text. A state returns the tokens that may follow
(`allowed`) and those that must (`forced`), and advances by the chosen one (`advance`).
"""
import json
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Union

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import Automaton
from merino_runtime.generation.constraints.guidance import Guided, guided, tools_source
from merino_runtime.generation.constraints.schema import any_object, schema_node
from merino_runtime.generation.constraints.tokens import Grammar, Trie
from merino_runtime.generation.constraints.tools import STYLES, tools_of
from merino_runtime.io.json_file import value_of

if TYPE_CHECKING:
    from merino_runtime.generation.text import Tokenizer

Compiled = Union[Grammar, Guided]
KEPT_GRAMMARS = 16  # of a tokenizer, with the masks that they have computed


def compile_schema(schema: Any, tokenizer: "Tokenizer", eos_ids: Iterable[int]) -> Compiled:
    """Compile a JSON schema. MerinoError names a keyword that cannot be expressed, and its path."""
    return _grammar(("schema", _plain(schema, "the JSON schema")), tokenizer, eos_ids,
                    lambda make: schema_node(make, schema),
                    lambda: {"schema": schema} if isinstance(schema, dict) else {})


def compile_json(tokenizer: "Tokenizer", eos_ids: Iterable[int]) -> Compiled:
    """Compile a grammar of any JSON object, of bounded depth."""
    return _grammar(("json",), tokenizer, eos_ids, any_object, dict)


def compile_tools(tools: Any, tool_choice: Any, tokenizer: "Tokenizer", eos_ids: Iterable[int], style: str = "json",
                  or_schema: Any = None) -> Compiled:
    """Compile a grammar of calls of the tools. tool_choice: `required`, a tool, or `auto`, which also allows a text
    that does not begin like a call, or with or_schema JSON that is valid for it. style: of tools.STYLES."""
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
    if grammar is None:
        trie = tokenizer.kept.get("trie") or tokenizer.kept.setdefault("trie", Trie(tokenizer))
        automaton = Automaton(trie.spelled)
        try:
            grammar = Grammar(trie, automaton, build(automaton), key[-1])
        except MerinoError as refusal:
            if not source():
                raise
            grammar = guided(trie, key[-1], source(), refusal)
    while len(kept) >= KEPT_GRAMMARS:
        kept.pop(next(iter(kept)), None)
    kept[key] = grammar
    return grammar
