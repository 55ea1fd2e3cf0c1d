"""Random JSON schemas of the kind that any engine of constraints takes, and values that are valid for one."""
import json
import random
import re

import tokenizers
from hypothesis import strategies as st

from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.generation.text import FIRST_WITH_BYTE_FALLBACK, Tokenizer, byte_table

PATTERNS = (r"^[A-Z]{2}-\d{1,3}$", r"^(red|green)?$", r"^[^a-c]x+\.$")
MATCHES = (["AB-1", "ZZ-999"], ["red", "green", ""], ["éxx.", '"x.', "\\x."])
LETTERS = st.characters(blacklist_categories=("Cs",))


def tokenizers_of_both_kinds():
    """Bytes as GPT-2 has them, and characters with bytes for the others as SentencePiece has them: (name, tokenizer,
    the EOS)."""
    words = ['{"', '":', '":"', '","', '",', "true", "false", "null", "[{", "}]", "name", '"name', "10", "99", "ab",
             '"}', "é", "é\"", "red", "-1", "0.", "\\u", "\\\"", "aa\"]", "  ", " a"]  # fmt: skip
    spelled = {byte: char for char, byte in byte_table().items()}
    by_bytes = dict(byte_table())
    for word in words:
        by_bytes.setdefault("".join(spelled[byte] for byte in word.encode()), len(by_bytes))
    eos = len(by_bytes)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False}  # fmt: skip
    described = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [dict(special, id=eos, content="<|end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": dict(model, vocab=by_bytes, merges=merges_for(by_bytes)),
    }  # fmt: skip
    yield "bytes", Tokenizer(json.dumps(described)), eos
    if version_tuple(tokenizers.__version__) < FIRST_WITH_BYTE_FALLBACK:
        return
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["\u2581", *map(chr, range(33, 127)), "é"]
    pieces += [word for word in (each.replace(" ", "\u2581") for each in words) if word not in pieces]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    described.update(
        added_tokens=[dict(special, id=place, content=pieces[place]) for place in range(3)], pre_tokenizer=None,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replaced]},
        decoder={"type": "Sequence", "decoders": [
            back, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        model=dict(model, unk_token="<unk>", fuse_unk=True, byte_fallback=True, vocab=vocab, merges=merges_for(vocab)),
    )  # fmt: skip
    yield "pieces", Tokenizer(json.dumps(described)), 2


def merges_for(vocab):
    """Each token from two others, where there are such."""
    results = []
    for token in sorted(vocab, key=len):
        cut = next((cut for cut in range(1, len(token)) if token[:cut] in vocab and token[cut:] in vocab), 0)
        if cut and not token.startswith("<"):
            results.append(token[:cut] + " " + token[cut:])
    return results


def bounds(low, high, kinds):
    def pair(values):
        (first, second), (left, right) = sorted(values[:2]), values[2:]
        results = {}
        if left:
            results[kinds[0]] = first
        if right:
            results[kinds[1]] = second
        return results

    value = st.integers(low, high)
    return st.tuples(value, value, st.booleans(), st.booleans()).map(pair)


def typed(kind, more):
    return more.map(lambda given: dict(given, type=kind))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(LETTERS, max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(LETTERS, max_size=2), inner, max_size=2),
    max_leaves=3,
)
leaves = st.one_of(
    st.just({"type": "boolean"}), st.just({"type": "null"}),
    values.map(lambda value: {"const": value}),
    st.lists(values, min_size=1, max_size=3).map(lambda chosen: {"enum": chosen}),
    typed("integer", bounds(-1200, 1200, ("minimum", "maximum"))),
    typed("number", bounds(-30, 1200, ("minimum", "maximum"))),
    typed("string", bounds(0, 6, ("minLength", "maxLength"))),
    st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
)  # fmt: skip


def composed(inner):
    names = st.lists(st.text(LETTERS, max_size=3), min_size=1, max_size=3, unique=True)
    objects = names.flatmap(lambda keys: st.fixed_dictionaries({
        "type": st.just("object"), "properties": st.fixed_dictionaries(dict.fromkeys(keys, inner)),
        "required": st.lists(st.sampled_from(keys), unique=True), "additionalProperties": st.just(False),
    }))  # fmt: skip
    lists = st.tuples(inner, bounds(0, 3, ("minItems", "maxItems"))).map(
        lambda drawn: dict(drawn[1], type="array", items=drawn[0]))  # fmt: skip
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices})
    return objects | lists | lists_of_different() | choices


@st.composite
def lists_of_different(draw):
    kept = draw(st.lists(st.sampled_from([0, 10, "a", "ab", "b", "", None, [1]]), min_size=1, unique_by=repr))
    limits = draw(bounds(0, len(kept), ("minItems", "maxItems")))
    return dict(limits, type="array", items={"enum": kept}, uniqueItems=True)


schemas = st.recursive(leaves, composed, max_leaves=6)


def instances(schema):
    """A strategy of values that are valid for a schema of `schemas`."""
    if "anyOf" in schema:
        return st.one_of(*map(instances, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind in ("boolean", "null"):
        return st.booleans() if kind == "boolean" else st.none()
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -5000), schema.get("maximum", 5000)
        whole = st.integers(low, max(low, high))
        return whole if kind == "integer" else whole | st.integers(8 * low, max(8 * low, 8 * high)).map(lambda n: n / 8)
    if "pattern" in schema:
        return st.sampled_from(MATCHES[PATTERNS.index(schema["pattern"])])
    if kind == "string":
        least = schema.get("minLength", 0)
        return st.text(LETTERS, min_size=least, max_size=max(least, schema.get("maxLength", 9)))
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems", 4)
        if "uniqueItems" in schema:
            kept = schema["items"]["enum"]
            counts = st.integers(least, min(len(kept), max(least, most)))
            return st.tuples(st.permutations(kept), counts).map(lambda drawn: drawn[0][: drawn[1]])
        return st.lists(instances(schema["items"]), min_size=least, max_size=max(least, most))
    inner = {name: instances(each) for name, each in schema["properties"].items()}
    needed = schema["required"]

    def in_order(members):
        return {name: members[name] for name in inner if name in members}

    required = {name: inner[name] for name in inner if name in needed}
    return st.fixed_dictionaries(required).flatmap(lambda members: st.lists(
        st.sampled_from([name for name in inner if name not in needed] or [None]), unique=True, max_size=3
    ).flatmap(lambda extra: st.fixed_dictionaries({name: inner[name] for name in extra if name is not None}).map(
        lambda others: in_order(dict(members, **others)))))  # fmt: skip


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def in_string(data):
    """Whether these first bytes of a JSON text end inside a string."""
    return re.sub(rb"\\.", b"", data, flags=re.DOTALL).count(b'"') % 2 == 1


def walked(state, spellings, eos, rng, most=400):
    """The bytes of an answer of random tokens among those that are allowed, with the forced ones at times.

    None after `most` tokens: a key that must end in one letter is not always left by chance.
    """
    data, count = b"", 0
    while not state.ended:
        count += 1
        forced = state.forced() if rng.random() < 0.5 else []
        for token in forced:
            assert state.allowed()[token], (data, spellings[token])
            state.advance(token)
            data += spellings[token]
        if forced:
            continue
        allowed = state.allowed()
        assert allowed.any(), data  # no dead end
        assert bool(allowed[eos]) == state.finished
        if allowed[eos] and (rng.random() < 0.4 or count > 60):
            state.advance(eos)
            break
        if count == most:
            return None
        choices = [place for place in allowed.nonzero()[0].tolist() if place != eos]
        if count > 40:  # to an end
            closing = [place for place in choices if spellings[place][-1:] in (b'"', b"]", b"}", b",", b":")]
            choices = closing or choices
        if count > 120:  # a recursive schema: deeper no more, and out of a string by its quote alone
            ends = (b'"',) if in_string(data) else (b"]", b"}")
            choices = [place for place in choices if spellings[place][-1:] in ends] or choices
        token = random.Random(rng.random()).choice(choices)
        state.advance(token)
        data += spellings[token]
    return data
