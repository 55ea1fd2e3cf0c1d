"""A suite of schemas with valid and invalid instances.

Neither engine takes what a schema forbids. What is valid is taken in the form that a constraint writes: compact, with
the keys in order and no others.
"""
import collections
import json
import os
import random
import sys

import pytest
from few_examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from json_schemas import compact, tokenizers_of_both_kinds, walked
from processes import fetched, sdist

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints import compile_schema
from merino_runtime.generation.constraints.automaton import DEAD
from merino_runtime.generation.constraints.guidance import Json, closed_schema, guided

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
BOTH = {name: (tokenizer, eos) for name, tokenizer, eos in tokenizers_of_both_kinds()}
TOKENIZER, EOS = BOTH["bytes"]
OF_BYTE = {data[0]: index for index, data in enumerate(TOKENIZER.spellings()) if len(data) == 1}
with open(os.path.join(os.path.dirname(__file__), "..", "schema_suite", "sample.jsonl"), encoding="utf-8") as lines:
    SAMPLE = [json.loads(line) for line in lines]


def takes(grammar, value):
    """Whether a whole answer may be this value, as `json.dumps` writes it compactly."""
    data, state = compact(value), grammar.start()
    if hasattr(grammar, "automaton"):
        number = grammar.automaton.run(state._number, data)
        return number != DEAD and grammar.automaton.accepts(number)
    ids = [OF_BYTE[byte] for byte in data]
    for begin in range(0, len(ids), 200):
        part = ids[begin:begin + 200]
        if state._matcher.validate_tokens(part) != len(part):
            return False
        state._matcher.consume_tokens(part)
    return state.finished


def in_order(value, schema, root):
    """The value with its keys in the order in which a closed schema has them."""
    while isinstance(schema, dict) and "$ref" in schema:
        schema = root["$defs"][schema["$ref"].split("/")[-1]]
    if not isinstance(schema, dict):
        return value
    for branch in schema.get("anyOf", ()):
        if is_valid(value, branch, root):
            return in_order(value, branch, root)
    if isinstance(value, dict):
        named, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        keys = [key for key in named if key in value] + [key for key in value if key not in named]
        return {key: in_order(value[key], named.get(key, others), root) for key in keys}
    if isinstance(value, list):
        first, others = schema.get("prefixItems", []), schema.get("items", {})
        return [in_order(item, first[index] if index < len(first) else others, root)
                for index, item in enumerate(value)]
    return value


def is_valid(value, schema, root):
    schema = dict(schema, **{"$defs": root["$defs"]}) if isinstance(schema, dict) else schema
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def compiled(schema, engine, monkeypatch):
    """Compile by one engine alone: `own` or `llguidance`."""
    TOKENIZER.kept.pop("grammars", None)
    if engine == "llguidance":
        trie = compile_schema({"type": "null"}, TOKENIZER, (EOS,)).trie
        return guided(trie, (EOS,), [[Json(schema)]], MerinoError("not tried."))
    if engine == "own":
        monkeypatch.setitem(sys.modules, "llguidance", None)
    return compile_schema(schema, TOKENIZER, (EOS,))


def judged(grammar, schema, tests):
    """Return the numbers of instances: taken although invalid, valid and in the form that is written, taken of those,
    valid but with other keys."""
    counts = collections.Counter()
    closed = closed_schema(schema)
    for test in tests:
        value = test["data"]
        narrow = is_valid(value, closed, closed)
        taken = takes(grammar, value) or narrow and takes(grammar, in_order(value, closed, closed))
        if not test["valid"]:
            counts["wrong"] += taken
        elif narrow:
            counts["valid"] += 1
            counts["taken"] += taken
        else:
            counts["other keys"] += 1
    return counts


@pytest.mark.parametrize("engine", ["own", "llguidance"])
@pytest.mark.parametrize("case", SAMPLE, ids=[case["description"] for case in SAMPLE])
def test_valid_instances_of_our_sample_are_taken_and_no_others(case, engine, monkeypatch):
    if engine == "llguidance":
        pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
    try:
        grammar = compiled(case["schema"], engine, monkeypatch)
    except MerinoError as refusal:
        assert engine == "llguidance", refusal
        pytest.skip(str(refusal)[-90:])
    counts = judged(grammar, case["schema"], case["tests"])
    assert counts["wrong"] == 0
    assert engine == "llguidance" or (counts["taken"], counts["other keys"]) == (counts["valid"], 0)


@examples(60)
@given(st.sampled_from(SAMPLE), st.sampled_from(sorted(BOTH)), st.booleans(), st.integers(0, 2 ** 32))
def test_an_answer_that_ends_parses_and_is_valid(case, kind, ours, seed):
    tokenizer, eos = BOTH[kind]
    schema = case["schema"]
    grammar = compile_schema(schema, tokenizer, (eos,))
    if not ours:
        pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
        try:
            grammar = guided(grammar.trie, (eos,), [[Json(schema)]], MerinoError("not tried."))
        except MerinoError:
            return
    data = walked(grammar.start(), tokenizer.spellings(), eos, random.Random(seed))
    assume(data is not None)
    value = json.loads(data.decode("utf-8"))
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    if not isinstance(schema.get("items"), list) and schema.get("exclusiveMinimum") is not True:
        validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)


def total_of(cases, engine, monkeypatch):
    """The counts of `judged` over (name, schema, tests), with the schemas that an engine compiles."""
    total, wrong = collections.Counter(), []
    for name, schema, tests in cases:
        total["schemas"] += 1
        try:
            grammar = compiled(schema, engine, monkeypatch)
        except MerinoError:
            continue
        counts = judged(grammar, schema, tests)
        total += collections.Counter(counts, compiled=1)
        wrong += [name] * counts["wrong"]
    print(engine, dict(total), wrong)
    return total, wrong


@pytest.mark.nightly
@pytest.mark.parametrize("engine, least", [("own", 0.85), ("both", 0.95)])
def test_maskbench(engine, least, monkeypatch):
    """Every tenth schema of guidance-ai/jsonschemabench."""
    if engine == "both":
        pytest.importorskip("llguidance", reason="llguidance is not installed (serve)")
    clone = ["git", "clone", "--quiet", "--depth", "1", "https://github.com/guidance-ai/jsonschemabench"]
    path = os.path.join(fetched("jsonschemabench", *clone), "maskbench", "data")
    cases = []
    for name in sorted(os.listdir(path))[::10]:
        with open(os.path.join(path, name), encoding="utf-8") as file:
            case = json.load(file)
        cases.append((name, case["schema"], case["tests"]))
    total, wrong = total_of(cases, engine, monkeypatch)
    assert not wrong
    assert total["compiled"] >= least * total["schemas"]
    assert total["taken"] >= 0.99 * total["valid"]


@pytest.mark.nightly
@pytest.mark.parametrize("engine", ["own", "both"])
@pytest.mark.parametrize("draft", ["draft4", "draft6", "draft7", "draft2019-09", "draft2020-12"])
def test_json_schema_test_suite(draft, engine, tmp_path, monkeypatch):
    """The suite is in the sources of the package jsonschema."""
    path = sdist("jsonschema==4.26.0", tmp_path, "/json/tests/draft") / "json" / "tests" / draft
    cases = []
    for file in sorted(path.glob("*.json")):
        if file.name not in ("refRemote.json", "vocabulary.json"):
            cases += [((file.name, case["description"]), case["schema"], case["tests"])
                      for case in json.loads(file.read_text(encoding="utf-8"))]
    total, wrong = total_of(cases, engine, monkeypatch)
    assert not wrong
    assert total["compiled"] > total["schemas"] / 2
