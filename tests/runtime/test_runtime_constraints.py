"""Answers that must parse: what a schema takes is what the automaton takes, token by token, however it is tokenized."""
import itertools
import json
import random
import re
import sys

import numpy as np
import pytest
from few_examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from json_schemas import compact, instances, schemas, tokenizers_of_both_kinds, walked

try:
    import jsonschema
except ImportError:  # a board's Python may have none: there the answers are parsed
    jsonschema = None

from merino_runtime.__main__ import main
from merino_runtime.api import open_model
from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints import compile_form, compile_schema, compile_tools
from merino_runtime.generation.constraints.automaton import DEAD, MOST_NODES
from merino_runtime.generation.constraints.guidance import LIMITS, Json, _Tokens, guided
from merino_runtime.generation.generate import Done, Generation
from merino_runtime.sampling import Form, GenerateOptions, Sampling

BOTH = {name: (tokenizer, eos) for name, tokenizer, eos in tokenizers_of_both_kinds()}
kinds = st.sampled_from(sorted(BOTH))
LIGHT = {"type": "object", "properties": {
    "room": {"enum": ["kitchen", "bedroom"]}, "brightness": {"type": "integer", "minimum": 0, "maximum": 100},
    "note": {"type": "string", "maxLength": 5}}, "required": ["room", "brightness", "note"]}
TOOLS = [{"type": "function", "function": {"name": "turn_on", "parameters": LIGHT}},
         {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}]


def validate(schema, value):
    if jsonschema is not None:
        jsonschema.Draft202012Validator(schema).validate(value)


@examples(60)
@given(schemas, kinds, st.integers(0, 2 ** 32))
def test_whatever_is_allowed_ends_in_json_that_validates(schema, kind, seed):
    tokenizer, eos = BOTH[kind]
    grammar = compile_schema(schema, tokenizer, (eos,))
    rng = random.Random(seed)
    for _ in range(3):
        data = walked(grammar.start(), tokenizer.spellings(), eos, rng)
        validate(schema, json.loads(data.decode("utf-8")))


@examples(60)
@given(st.data(), schemas, kinds, st.integers(0, 2 ** 32))
def test_each_valid_value_is_taken_however_it_is_tokenized(data, schema, kind, seed):
    tokenizer, eos = BOTH[kind]
    spellings, rng = tokenizer.spellings(), random.Random(seed)
    value = data.draw(instances(schema))
    state = compile_schema(schema, tokenizer, (eos,)).start()
    left = compact(value)
    while left:
        fitting = [place for place, spelled in enumerate(spellings) if spelled and left.startswith(spelled)]
        token = rng.choice(fitting)
        assert state.allowed()[token], (left, spellings[token])
        state.copy().advance(token)
        state.advance(token)
        left = left[len(spellings[token]):]
    assert state.finished and state.allowed()[eos]


@examples(30)
@given(schemas, kinds, st.integers(0, 2 ** 32))
def test_a_mask_names_the_tokens_that_lead_to_no_dead_state(schema, kind, seed):
    tokenizer, eos = BOTH[kind]
    grammar, spellings, rng = compile_schema(schema, tokenizer, (eos,)), tokenizer.spellings(), random.Random(seed)
    number = grammar.start()._number
    for _ in range(12):
        mask = grammar.mask(number)
        expected = [bool(spelled) and grammar.automaton.run(number, spelled) != DEAD for spelled in spellings]
        assert mask.tolist() == expected
        if not mask.any():
            break
        number = grammar.automaton.run(number, spellings[rng.choice(mask.nonzero()[0].tolist())])


@pytest.mark.parametrize("kind", sorted(BOTH))
def test_forced_tokens_are_those_of_the_tokenizer_but_where_a_longer_one_could_follow(kind):
    tokenizer, eos = BOTH[kind]
    spellings = tokenizer.spellings()
    state = compile_schema(LIGHT, tokenizer, (eos,)).start()
    forced = state.forced()
    text = b"".join(spellings[one] for one in forced)
    assert text and b'{"room":"'.startswith(text) and len(forced) < len(text)
    whole = tokenizer.encode("\n" + text.decode())[-len(forced):]
    assert forced == whole
    for token in tokenizer.encode("\n" + '{"room":"kitchen')[len(tokenizer.encode("\n")):]:
        state.advance(token)
    assert state.forced() and not state.ended  # ","brightness":
    # In `[1,10]` a digit may be followed by a digit, and `10` is one token: `1` is not forced as a token of its own.
    ten = compile_schema({"enum": [10, 11]}, tokenizer, (eos,)).start()
    assert ten.forced() == []
    assert compile_schema({"const": "é"}, tokenizer, (eos,)).start().forced()


def test_any_object_is_taken_as_deep_as_it_says():
    tokenizer, eos = BOTH["bytes"]
    state = compile_schema({"type": "object"}, tokenizer, (eos,)).start()
    text = json.dumps({"a": [1, -2.5e10, {"b\n": [[], {}]}], "": None, "é": "\U0001f600\x01"}, separators=(",", ":"))
    for token in tokenizer.encode(text):
        assert state.allowed()[token]
        state.advance(token)
    assert state.ended and state.finished
    deep = compile_schema({"type": "object"}, tokenizer, (eos,)).start()
    with pytest.raises(MerinoError, match="not allowed here"):
        for token in tokenizer.encode('{"a":' * 40):
            deep.advance(token)


def test_an_answer_with_tools_is_a_call_or_with_auto_a_text():
    tokenizer, eos = BOTH["bytes"]

    def state_after(text, choice, style="json"):
        state = compile_tools(TOOLS, choice, tokenizer, (eos,), style).start()
        for token in tokenizer.encode(text):
            state.advance(token)
        return state

    call = '{"name":"turn_on","arguments":{"room":"kitchen","brightness":100,"note":"a b"}}'
    assert state_after(call, "required").ended and state_after(call, "auto").ended
    hermes = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    named = {"type": "function", "function": {"name": "stop"}}
    assert state_after(hermes, named, "hermes").ended
    assert state_after("It is warm. {", "auto").finished
    for text, choice in (("It", "required"), ('{"name":"turn', named), (call.replace("100", "101"), "auto")):
        with pytest.raises(MerinoError, match="not allowed here"):
            state_after(text, choice)
    report = {"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]}
    either = compile_tools(TOOLS, "auto", tokenizer, (eos,), "hermes", Form("json", report))
    assert spells(either, hermes) and spells(either, '{"done":true}') and not spells(either, "It is warm.")
    required = compile_tools(TOOLS, "required", tokenizer, (eos,), "hermes", Form("json", report))
    assert not spells(required, '{"done":true}')


@pytest.mark.parametrize("schema, expected", [
    ({"type": "object", "properties": {"a": {"type": "array", "items": {"multipleOf": 2}}}},
     "#/properties/a/items/multipleOf: this keyword is not supported"),
    ({"enum": []}, "#/enum: it is an empty list"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "#/maxLength: nothing satisfies it"),
    ({"type": "integer", "exclusiveMinimum": 3, "maximum": 3}, "#: no integer is within its bounds"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "#/properties/a: nothing satisfies it"),
    (False, "#: nothing satisfies it"), ([], "#: it is a list of 0"), ({"type": "text"}, '#/type: it is "text"'),
    ({"$ref": "#"}, "#: it refers to itself without end"),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#"}]}}}, "refers to itself without end"),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#: nothing satisfies it"),
    ({"$ref": "http://example.org/x"}, "http://example.org/x is not in the schema"), ({"$ref": 1}, "must be a string"),
    ({"$ref": "#/$defs/x"}, "is not in the schema"), ({"not": {}}, "#: nothing satisfies it"),
    ({"type": "string", "pattern": "(?=a)b"}, "#/pattern: look-ahead"),
    ({"pattern": "(a"}, "is not a pattern that can be read"),
    ({"oneOf": [{"contains": {}}, {"type": "array"}]}, "this keyword is not supported"),
    ({"format": "regex"}, "#/format"), ({"type": "string", "maxLength": -1}, "#/maxLength: it is -1"),
    ({"const": float("nan")}, "not JSON"), ({"const": {1, 2}}, "not JSON"),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "#/uniqueItems: it is supported for items"),
    ({"type": "array", "items": {"enum": [1]}, "uniqueItems": True, "minItems": 2}, "#: no list satisfies it"),
    ({"allOf": [{"minimum": 3, "type": "number"}, {"maximum": 2}]}, "no number is within its bounds"),
    ({"allOf": [{"properties": {"a": True}, "required": ["a"]}, {"additionalProperties": False}]}, "it is required"),
    ({"not": {"multipleOf": 3}}, "#/not/multipleOf: inside `not` or `oneOf` this keyword is not supported"),
    ({"anyOf": [{"allOf": [{"anyOf": [{"minimum": n} for n in range(9)]}] * 4}]}, "more than 400 alternatives"),
])
def test_what_cannot_be_expressed_is_refused_by_its_name_and_place(schema, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer, eos = BOTH["bytes"]
    with pytest.raises(MerinoError) as caught:
        compile_schema(schema, tokenizer, (eos,))
    assert expected in str(caught.value)


@pytest.mark.parametrize("schema, taken, other", [  # as Home Assistant makes them of its tools and of AI tasks
    ({"type": "string", "format": "entity_id"}, '"light.hall"', "1"),
    ({"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3, "format": "RGB"}, "[1,2,3]", "[1,2]"),
    ({"type": "array", "maxItems": 0}, "[]", "[1]"),
    ({"type": "array", "prefixItems": [{"const": 1}], "maxItems": 1}, "[1]", "[1,2]"),
    ({"nullable": True, "anyOf": [{"type": "integer"}, {"type": "string", "format": "lower"}]}, '"a"', "null"),
    ({"allOf": [{"type": "string", "format": "lower"}, {"type": "string", "maxLength": 1}]}, '"a"', '"ab"'),
    ({"allOf": [{"type": "integer"}, {"minimum": 5}, {"maximum": 10, "nullable": True}]}, "5", "4"),
    ({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "uniqueItems": True}, '["b"]', '["b","b"]'),
    ({"type": "object", "additionalProperties": True, "uniqueItems": False}, '{"a":1}', "[]"),
])
def test_what_only_describes_is_left_out_and_several_schemas_are_one(schema, taken, other, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer, eos = BOTH["bytes"]
    assert spells(compile_schema(schema, tokenizer, (eos,)), taken)
    assert not spells(compile_schema(schema, tokenizer, (eos,)), other)


@pytest.mark.parametrize("pattern, schema", [
    ("^((.?){1000}){1000}x$", {}), ("^(((a?){100}){100}){100}b$", {}), ("^(.*.*.*.*){1000}z$", {"maxLength": 5000}),
    ("((a{0,1000}){0,1000}){0,1000}b", {"minLength": 3}),
])
def test_a_step_that_would_not_end_is_an_error(pattern, schema, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer, eos = BOTH["bytes"]
    tokenizer.kept.pop("grammars", None)
    with pytest.raises(MerinoError, match="too large|takes too long"):
        state = compile_schema(dict(schema, type="string", pattern=pattern), tokenizer, (eos,)).start()
        for _ in range(100):
            state.advance(int(state.allowed().nonzero()[0][0]))
    grammars = tokenizer.kept.get("grammars", {}).values()
    assert all(grammar.automaton.size <= MOST_NODES for grammar in grammars)
    later = compile_schema({"type": "boolean"}, tokenizer, (eos,)).start(until_s=0.0)
    with pytest.raises(MerinoError, match="takes too long"):
        for _ in range(5000):
            later._grammar.automaton.budget.renew(1, 0.0)
            later._grammar.automaton.budget.spend(600)


def test_a_full_automaton_is_built_again(monkeypatch):
    tokenizer, eos = BOTH["bytes"]
    first = compile_schema(LIGHT, tokenizer, (eos,))
    assert compile_schema(LIGHT, tokenizer, (eos,)) is first
    monkeypatch.setattr("merino_runtime.generation.constraints.MOST_NODES", 10)
    assert compile_schema(LIGHT, tokenizer, (eos,)) is not first


def test_a_tool_without_properties_has_the_arguments_that_its_parameters_ask_for():
    tokenizer, eos = BOTH["bytes"]

    def call(parameters, arguments):
        tools = [{"function": {"name": "a", "parameters": parameters}}]
        return spells(compile_tools(tools, "required", tokenizer, (eos,)), '{"name":"a","arguments":' + arguments + "}")

    assert call({"type": "object"}, "{}") and call({}, "{}") and not call({"type": "object"}, '{"a":1}')
    for parameters in ({"required": ["b"]}, {"type": "object", "minProperties": 1}, {"allOf": [{"required": ["b"]}]},
                       {"type": "object", "patternProperties": {"^b$": {"type": "integer"}}, "minProperties": 1}):
        assert call(parameters, '{"b":1}') and not call(parameters, "{}")


PATTERNS = [r"\d{3}-\d{4}", "^(yes|no)$", "[^a]{2,3}|\u00e9+\u20ac", r"(\w+@)?[a-c]*\.(org|net)", "", 'a"b/c']
CHESS = """root ::= "1. " move " " move "\\n" ([1-9] [0-9]? ". " move " " move "\\n"){0,2}  # llama.cpp's example
move ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?"""
MOVE = r"([NBKQR][a-h]?[1-8]?x?[a-h][1-8]|([a-h]x)?[a-h][1-8](=[NBKQR])?|O-O(-O)?)[+#]?"
GRAMMARS = {CHESS: rf"1\. {MOVE} {MOVE}\n([1-9][0-9]?\. {MOVE} {MOVE}\n){{0,2}}",
            'root ::= [^a\\]-] "\\"\\x41[" . |\n  b\nb ::= "\\u00e9"{2}': r'[^a\]-]"A\[[\s\S]|\u00e9{2}',
            "root ::= item root | item\nitem ::= [a-z]+ \"\\n\"": r"([a-z]+\n)+"}


@pytest.mark.parametrize("kind", sorted(BOTH))
@pytest.mark.parametrize(("form", "pattern"), [
    *[(Form("regex", text), text) for text in PATTERNS],
    *[(Form("grammar", text), GRAMMARS[text]) for text in GRAMMARS],
    (Form("choice", ["Python", "Rust", "Ru"]), "Python|Ru(st)?")])
def test_a_text_of_a_pattern_a_grammar_or_a_choice_matches_as_a_whole(form, pattern, kind):
    tokenizer, eos = BOTH[kind]
    grammar, rng = compile_form(form, tokenizer, (eos,)), random.Random(1)
    texts = {walked(grammar.start(), tokenizer.spellings(), eos, rng).decode() for _ in range(12)}
    assert all(re.fullmatch(pattern, text) for text in texts)


def test_a_rule_contains_itself_without_limit_at_its_end_and_to_a_depth_elsewhere():
    tokenizer, eos = BOTH["bytes"]

    def takes(grammar, text):
        return spells(compile_form(Form("grammar", grammar), tokenizer, (eos,)), text)

    tail, inside, left = 'root ::= "a" root | "b"', 'root ::= "(" root ")" | "b"', 'root ::= root "+" [0-9] | [0-9]'
    assert takes(tail, "a" * 500 + "b") and not takes(tail, "aa")
    assert takes(inside, "(" * 15 + "b" + ")" * 15) and not takes(inside, "(" * 16 + "b" + ")" * 16)
    assert takes(left, "1+2+3") and not takes(left, "1+")


@pytest.mark.parametrize(("form", "expected"), [
    (Form("regex", "(?=a)b"), "the regex cannot be a constraint: look-ahead"),
    (Form("regex", "("), "is not a pattern that can be read"),
    (Form("regex", r"\p{L}"), "llguidance takes more"), (Form("grammar", "%llguidance {}\nstart: /a/"), "llguidance"),
    *[(Form("grammar", text), "the grammar cannot be a constraint: " + why) for text, why in (
        ("", "it has no rule root"), ("root ::=", "it has no rule root"), ("root ::= b", "it has no rule b"),
        ('root ::= "a" )', "the rule root has a ) without"), ('root ::= ("a"', "a ( has no )"), ("root ::= *", "* has"),
        ('root ::= "a"{,}', "'{,}' is no part"), (r'root ::= "\q"', r"the escape \q"),
        ("root ::= <think>", "'<think>' is no part of a rule"))],
    (Form("grammar", "root ::= root"), "the constraint allows no text"), (Form("choice", ["\ud800"]), "surrogate"),
    (Form("grammar", "root ::= " + "(" * 5000), "nested too deeply"),
    (Form("grammar", "root ::= ((.?){1000}){1000}"), ""), (Form("regex", "((.?){1000}){1000}"), "")])
def test_a_pattern_or_grammar_that_is_refused_says_why(form, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer, eos = BOTH["bytes"]
    with pytest.raises(MerinoError) as caught:
        state = compile_form(form, tokenizer, (eos,)).start()
        for token in tokenizer.encode("x" * 3000 if expected == "" else ""):
            state.allowed()
            state.advance(token)
    assert expected in str(caught.value)


def test_llguidance_takes_its_own_grammars_and_more_patterns():
    pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
    tokenizer, eos = BOTH["bytes"]
    for form, taken, other in ((Form("regex", r"\p{Lu}/\p{Nd}"), "\u00c9/7", "\u00e9/7"),
                               (Form("grammar", "%llguidance {}\nstart: /[0-9]+/ \"x\""), "12x", "x")):
        state = compile_form(form, tokenizer, (eos,)).start()
        with pytest.raises(MerinoError, match="not allowed here"):
            wrong = state.copy()
            for token in tokenizer.encode(other):
                wrong.advance(token)
        for token in tokenizer.encode(taken):
            state.advance(token)
        assert state.ended


def test_the_depth_of_what_contains_itself_is_limited_without_a_dead_end():
    tokenizer, eos = BOTH["bytes"]
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}, "any": {}}, "required": ["any"]}
    grammar = compile_schema(tree, tokenizer, (eos,))
    assert spells(grammar, '{"next":' * 9 + '{"any":[[1]]}' + ',"any":null}' * 9)
    state, depth, level = grammar.start(), 0, b'{"next":'
    while grammar.automaton.run(state._number, level) != DEAD:
        for byte in level:
            state.advance(tokenizer.encode(chr(byte))[0])
        depth += 1
    assert 9 < depth <= 16
    rest = walked(state, tokenizer.spellings(), eos, random.Random(0))
    json.loads((level * depth + rest).decode())


def spells(grammar, text):
    """Whether a whole answer may be this text."""
    state = grammar.automaton.run(grammar.start()._number, text.encode("utf-8"))
    return state != DEAD and grammar.automaton.accepts(state)


@pytest.mark.parametrize("least, most", [(0, None), (2, None), (0, 2), (1, 1), (2, 3), (0, 0)])
def test_a_list_of_different_values_has_them_in_any_order(least, most):
    tokenizer, eos = BOTH["bytes"]
    schema = {"type": "array", "uniqueItems": True, "minItems": least, "items": {"enum": [2, 24, 4]}}
    grammar = compile_schema(dict(schema, **({} if most is None else {"maxItems": most})), tokenizer, (eos,))
    for count in range(5):
        for numbers in itertools.product([2, 24, 4], repeat=count):
            right = len(set(numbers)) == count and least <= count <= (3 if most is None else most)
            assert spells(grammar, json.dumps(numbers, separators=(",", ":"))) == right, numbers


@pytest.mark.parametrize("tools, choice, expected", [
    ([], "auto", "an empty list"), ([{"type": "function"}], "auto", "tools[0] is no function"),
    (TOOLS, "any", "allowed: auto"),
    (TOOLS + TOOLS[:1], "auto", "twice"), (TOOLS, {"function": {"name": "x"}}, "allowed: turn_on, stop"),
    ([{"function": {"name": "a", "parameters": {"properties": {"b": {"multipleOf": 2}}}}}], "auto",
     "tools[0].function.parameters#/properties/b/multipleOf"),
])  # fmt: skip
def test_what_is_no_list_of_tools_is_refused(tools, choice, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer, eos = BOTH["bytes"]
    with pytest.raises(MerinoError) as caught:
        compile_tools(tools, choice, tokenizer, (eos,))
    assert expected in str(caught.value)


def test_a_models_text_parses_and_its_cache_is_that_of_single_steps(folder):
    with open_model(folder, threads=1) as model:
        for seed in range(4):
            sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
            *tokens, done = model.generate("The mill", json_schema=LIGHT, max_new_tokens=60, sampling=sampling)
            assert isinstance(done, Done) and done.stop_reason == "eos", done
            value = json.loads("".join(token.text for token in tokens))
            validate(LIGHT, value)
            assert done.forced > 10 and done.tokens == len(tokens)
        held = model.backend.ids[:]
        prompt = model.tokenizer.encode("The mill")
        answer = [token.id for token in tokens]
        assert held == (prompt + answer)[:len(held)]
        logits = model.backend.step(answer[0]).copy()
        model.backend.truncate(0)
        for token in held:
            model.backend.step(token)
        expected = model.backend.step(answer[0])
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_models_text_matches_a_pattern_and_a_grammar(model):
    for options, pattern in (({"regex": "[A-Z][a-z]{2,5}, (yes|no)"}, "[A-Z][a-z]{2,5}, (yes|no)"),
                             ({"grammar": 'root ::= "- " [a-z]{1,9} "\\n" root | "."'}, r"(- [a-z]{1,9}\n)*\.")):
        *tokens, done = model.generate("The mill", max_new_tokens=300, sampling=Sampling(seed=2), **options)
        assert re.fullmatch(pattern, "".join(token.text for token in tokens)) and done.stop_reason == "eos", tokens
    for wrong, expected in (({"regex": "a", "grammar": "b"}, "regex and grammar were given"),
                            ({"regex": 3}, "regex is 3"),
                            ({"grammar": "a", "ignore_eos": True}, "the text ends where grammar says")):
        with pytest.raises(MerinoError, match=expected):
            model.generate("The mill", **wrong)


def test_forced_tokens_are_prefilled_together_and_the_limits_hold(model):
    runs = []
    prefill, step = model.backend.prefill, model.backend.step

    def prefill_as_one(ids):
        """Before ONNX Runtime 1.20 it runs step by step behind other ids."""
        before = len(runs)
        logits = prefill(ids)
        runs[before:] = [len(ids)]
        return logits

    model.backend.prefill = prefill_as_one
    model.backend.step = lambda token: runs.append(1) or step(token)
    ids = model.tokenizer.encode("The mill")
    constraint = model.constraint(json_schema=LIGHT)
    options = GenerateOptions(max_new_tokens=60, sampling=Sampling(temperature=0.0))
    *tokens, done = Generation(model.backend, ids, options,
                               constraint=constraint, stop_ids=model.bundle.stop_ids)  # fmt: skip
    assert done.stop_reason == "eos" and len(runs) == done.tokens - done.forced
    assert runs[0] > len(ids) and max(runs[1:]) > 3  # with the beginning, and with `","brightness":`
    *tokens, done = Generation(model.backend, ids, GenerateOptions(max_new_tokens=5), constraint=constraint)
    assert len(tokens) == 5 and done.stop_reason == "length"
    *tokens, done = Generation(model.backend, ids * 20 + [1, 2], GenerateOptions(max_new_tokens=500, overflow="shift"),
                               constraint=constraint)  # fmt: skip
    assert done.stop_reason == "eos"
    full = (ids * 64)[:model.backend.context - 3]
    *tokens, done = Generation(model.backend, full, constraint=constraint)
    assert len(tokens) == 3 and done.stop_reason == "context"


# SentencePiece's mark of a space as a key: the tokenizer encodes it as a space, so it is written by its bytes.
SPACE_MARK = {"type": "object", "properties": {"\u2581": {"type": "boolean"}}, "required": ["\u2581"],
              "additionalProperties": False}  # fmt: skip


@examples(40)
@given(schemas, kinds, st.integers(0, 2 ** 32))
@example(SPACE_MARK, "pieces", 0)
def test_llguidances_answers_validate_as_well(schema, kind, seed):
    pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
    tokenizer, eos = BOTH[kind]
    own = compile_schema(schema, tokenizer, (eos,))
    try:
        grammar = guided(own.trie, (eos,), [[Json(schema)]], MerinoError("refused"))
    except MerinoError as error:
        assert "llguidance refuses it too" in str(error)
        return
    data = walked(grammar.start(), tokenizer.spellings(), eos, random.Random(seed))
    validate(schema, json.loads(data.decode("utf-8")))


@pytest.mark.parametrize("kind", sorted(BOTH))
@pytest.mark.parametrize("data", ["mill \u2581".encode(), "\u2581".encode()[:2], b"ab" + "\u00e9".encode()[:1],
                                  "\u2581ab".encode()[1:]])  # fmt: skip
def test_llguidance_gets_the_tokens_of_exactly_its_bytes(kind, data):
    """It may force bytes that end within a character, as where two keys begin with the same byte."""
    tokenizer, eos = BOTH[kind]
    spellings = tokenizer.spellings()
    tokens = _Tokens(compile_schema({"type": "null"}, tokenizer, (eos,)).trie, (eos,))(data)
    assert b"".join(spellings[token] for token in tokens) == data


def test_llguidance_takes_what_our_automaton_refuses():
    pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
    tokenizer, eos = BOTH["bytes"]
    either = {"anyOf": [{"$ref": "#/$defs/n"}, {"multipleOf": 7}]}
    tree = {"$defs": {"n": {"type": "object", "properties": {"n": either}, "required": ["n"]}}, "$ref": "#/$defs/n"}
    state = compile_schema(tree, tokenizer, (eos,)).start()
    for token in tokenizer.encode('{"n":{"n":14}}'):
        assert state.allowed()[token] and not state.finished
        state.copy().advance(token)
        state.advance(token)
    assert state.ended and state.allowed()[eos] and state.forced() == []
    even = [{"type": "function", "function": {"name": "turn", "parameters": {
        "type": "object", "properties": {"by": {"type": "integer", "multipleOf": 90}}, "required": ["by"]}}}]
    call = '{"name":"turn","arguments":{"by":180}}'
    for choice, other, texts in (("required", None, [call]), ("auto", None, ["Hello", "{"]),
                                  ("auto", Form("json", {"enum": ["yes"]}), [call, '"yes"', '"'])):
        for text in texts:
            state = compile_tools(even, choice, tokenizer, (eos,), "json", other).start()
            for token in tokenizer.encode(text):
                state.advance(token)
            assert state.finished == (text not in ("{", '"'))
    with pytest.raises(MerinoError, match="not allowed here"):
        for token in tokenizer.encode('{"name":"turn","arguments":{"by":45'):
            state.advance(token)
    with pytest.raises(MerinoError, match="#/uniqueItems: it is supported.*llguidance refuses it too: .*Unimplemented"):
        compile_schema({"type": "array", "uniqueItems": True}, tokenizer, (eos,))


LONG = {"type": "object", "required": ["text"], "properties": {"text": {
    "type": "string", "maxLength": 5000, "pattern": r"^(\S+\s+){0,99}\S+$"}}}


@pytest.mark.parametrize("more", [0, 3])
def test_an_error_of_llguidance_is_an_error_and_not_the_end(more, monkeypatch):
    pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
    tokenizer, eos = BOTH["bytes"]
    stop_ids = (eos, eos + more) if more else (eos,)
    trie = compile_schema({"type": "null"}, tokenizer, (eos,)).trie

    def written(limits):
        monkeypatch.setattr("merino_runtime.generation.constraints.guidance.LIMITS", limits)
        state = guided(trie, stop_ids, [[Json(LONG)]], MerinoError("refused")).start()
        for token in tokenizer.encode('{"text":"ab cd"}'):
            assert state.allowed()[token] and not state.ended
            state.advance(token)
        return state

    assert written(LIMITS).ended
    with pytest.raises(MerinoError, match="too large for llguidance"):
        written({})


def test_llguidance_writes_no_key_that_the_schema_does_not_name():
    pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
    tokenizer, eos = BOTH["bytes"]
    schema = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}, "required": ["a", "b"],
              "allOf": [{"properties": {"c": {"type": "object", "properties": {"d": {}}}}}]}
    trie = compile_schema({"type": "null"}, tokenizer, (eos,)).trie
    for text, taken in (('{"a":3,"c":{"d":1},"b":1}', True), ('{"a":3,"b":1,"x":1}', False),
                        ('{"a":3,"c":{"x":1},"b":1}', False)):
        state = guided(trie, (eos,), [[Json(schema)]], MerinoError("refused")).start()
        assert (state._matcher.validate_tokens(tokenizer.encode(text)) == len(tokenizer.encode(text))) == taken, text


def test_the_command_line_takes_files_and_says_what_is_wrong_with_them(folder, tmp_path, capsys):
    def run(*words):
        code = main(["generate", folder, "The mill", "--set=seed=1", *words])
        return (code, *capsys.readouterr())

    def file(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    schema, tools = file("schema.json", json.dumps(LIGHT)), file("tools.json", json.dumps(TOOLS[1:]))
    code, out, _ = run("--json-schema", schema)
    assert code == 0
    validate(LIGHT, json.loads(out))
    code, out, _ = run("--tools", tools)
    assert code == 0 and json.loads(out) == {"name": "stop", "arguments": {}}
    code, out, err = run("--json-schema", schema, "-n", "12")
    assert code == 0 and "was cut by length and is not complete:" in err and "stopped by length" in err
    for words, expected in (
        (["--json-schema", file("cut.json", '{"type":\n "object",')], "line 2 column"),
        (["--json-schema", str(tmp_path / "none.json")], "No such file"),
        (["--json-schema", file("not.json", '{"contains": {}}')], "#/contains: this keyword"),
        (["--json-schema", schema, "--tools", tools], "Leave one out"),
        (["--json-schema", schema, "--set=ignore_eos=true"], "Leave out ignore_eos"),
        (["--tools", schema], "tools are an object"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (1, "") and expected in err and len(err.splitlines()) == 1, err
