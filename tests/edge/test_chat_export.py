"""Chat templates at export: what is rendered gives the same as transformers, what cannot be is left to Jinja, and a
template that raises leaves nothing behind."""

import json
import shutil

import chat_bundle
import chat_templates
import numpy as np
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from merino_edge.bundles.chat import chat_of, for_texts
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.families.checkpoint import ChatTemplate, read_chat_template, stop_ids_of
from merino_edge.families.gguf.tokenizer import chat_template
from merino_runtime.api import open_model
from merino_runtime.bundle import load_bundle
from merino_runtime.chat.template import Turn, by_parts, compiled, messages_of, segments_of
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import GREEDY

TEXTS = st.text(max_size=12).filter(lambda text: not set(text) & {"\ue000", "\ue001"}) | st.sampled_from([
    "<|im_end|>", " a\n", "<think>\nhm\n</think>\n\nyes", "</think>", "{{ x }}", "", "<start_of_turn>", "\u3000x\u2028",
])  # fmt: skip
TURNS = st.lists(st.builds(Turn, TEXTS, TEXTS), max_size=3)


def exported_template(name):
    template = {**chat_templates.EXACT, **chat_templates.INEXACT}[name]
    return template, chat_of(ChatTemplate(template, chat_templates.TOKENS, name))


def transformers_text(template, system, turns, user, **options):
    rendered, _ = render_jinja_template(
        [messages_of(system, turns, user)], chat_template=template, add_generation_prompt=True,
        **chat_templates.TOKENS, **options,
    )  # fmt: skip
    return rendered[0]


@pytest.mark.parametrize("name", chat_templates.EXACT)
def test_parts_give_what_transformers_renders_for_any_texts(name):
    template, result = exported_template(name)
    parts = result.chat.parts
    assert result.why_jinja == "" and parts is not None
    by_board = compiled(template, name)

    @examples(60)
    @given(st.none() | TEXTS, TURNS, TEXTS, st.booleans())
    def check(system, turns, user, no_think):
        system = system if parts.system else None
        no_think = no_think and parts.no_think is not None
        expected = transformers_text(template, system, turns, user, **({"enable_thinking": False} if no_think else {}))
        assert "".join(piece.text for piece in by_parts(parts, system, turns, user, no_think)) == expected
        pieces = segments_of(by_board, result.chat, messages_of(system, turns, user), no_think)
        assert "".join(piece.text for piece in pieces) == expected

    check()


def test_the_parts_that_the_boards_tests_use_are_what_is_exported():
    for name, described in (("chatml", chat_templates.CHATML_PARTS), ("qwen3", chat_templates.QWEN3_PARTS)):
        parts = exported_template(name)[1].chat.parts
        assert {**parts._asdict(), "system": parts.system._asdict(), "texts": parts.texts._asdict()} == described


def test_a_template_that_takes_lists_of_parts_gets_the_texts():
    """As transformers renders such a template for a list with one text."""
    given = ChatTemplate(chat_templates.SMOLVLM, chat_templates.TOKENS, "it")
    template = for_texts(given)
    parts = chat_of(template).chat.parts
    system, turns, user = "S", [Turn(" a", "b\n"), Turn("c", "d")], " e"
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages_of(system, turns, user)
    ]
    (expected,), _ = render_jinja_template(
        [messages], chat_template=given.text, add_generation_prompt=True, **chat_templates.TOKENS
    )
    assert "".join(piece.text for piece in by_parts(parts, system, turns, user, False)) == expected
    assert "c<end_of_utterance>\nAssistant: d" in expected
    for text in (*chat_templates.EXACT.values(), *chat_templates.INEXACT.values(), chat_templates.RAISING):
        unchanged = ChatTemplate(text, chat_templates.TOKENS, "it")
        assert for_texts(unchanged) == unchanged


@pytest.mark.parametrize("name", chat_templates.INEXACT)
def test_what_cannot_be_rendered_is_left_to_jinja_and_it_says_why(name):
    template, result = exported_template(name)
    assert result.chat.parts is None and result.why_jinja
    conversation = ("S", [Turn("a ", " b"), Turn("c", "d")], "e")
    pieces = segments_of(compiled(template, name), result.chat, messages_of(*conversation), False)
    assert "".join(piece.text for piece in pieces) == transformers_text(template, *conversation)


@pytest.fixture(scope="module")
def checkpoint(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talks") / "tiny"
    folder.mkdir()
    return chat_bundle.make_checkpoint(folder, decoder)


def test_a_bundle_has_the_template_its_parts_and_every_stop_id(checkpoint, tmp_path, here):  # noqa: F811
    code, out, err = here("export", checkpoint, "-o", tmp_path / "bundle", "--context", "64")
    assert code == 0, err
    assert "chat template included" in out and "nothing but the bundle" in out
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert bundle.stop_ids == (0, 2) and bundle.chat.parts.begin == chat_templates.CHATML_PARTS["begin"]
    assert (tmp_path / "bundle" / bundle.chat.template).read_text() == chat_templates.CHATML
    assert bundle.chat.tokens == chat_templates.TOKENS
    source = load_source(str(tmp_path / "bundle"))
    again = export(source, tmp_path / "again", ExportRequest(dialect="portable", context=64)).bundle
    assert (again.chat, again.stop_ids) == (bundle.chat, bundle.stop_ids)
    silent = export(source, tmp_path / "silent", ExportRequest(context=64, chat=False))
    assert silent.bundle.chat is None and not (silent.folder / "chat_template.jinja").exists()


def test_a_hubs_tokenizer_json_gives_the_same_text_through_generate_and_chat(checkpoint, tmp_path):
    """One that cuts and fills texts, and puts tokens before and behind them."""
    mark, text = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    end = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    as_of_a_hub = {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 32}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<|endoftext|>"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [mark, text, end],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [chat_bundle.MARKS.index(name)], "tokens": [name]}
                               for name in ("<|im_start|>", "<|im_end|>")},
        },
    }  # fmt: skip
    heard = {}
    for name, changes in (("plain", {}), ("hub", as_of_a_hub)):
        folder = shutil.copytree(checkpoint, tmp_path / name)
        described = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**described, **changes}))
        (folder / "chat_template.jinja").write_text(chat_templates.CHATML)
        made = export(
            load_source(str(folder)), tmp_path / f"{name}-bundle", ExportRequest(dialect="fused", context=128)
        ).folder
        assert json.loads((made / "tokenizer_config.json").read_text())["add_bos_token"] == (name == "hub")
        with open_model(str(made)) as model:
            *_, done = model.generate(chat_bundle.TEXT, max_new_tokens=2, sampling=GREEDY, ignore_eos=True)
            prompt = list(model.backend.ids)[: done.prefill_tokens]
            list(model.chat(sampling=GREEDY, max_new_tokens=2).answer(chat_bundle.TEXT))
            heard[name] = prompt, list(model.backend.ids)
    begin = chat_bundle.MARKS.index("<|im_start|>")
    assert heard["hub"] == ([begin, *heard["plain"][0]], heard["plain"][1]) and len(heard["plain"][0]) > 4


@pytest.mark.parametrize(("template", "message"), [
    (chat_templates.RAISING, "raises: This model takes no more than tools"), ("{% for %}", "is not a chat template"),
])  # fmt: skip
def test_a_template_that_raises_ends_the_export_and_nothing_is_written(checkpoint, template, message, tmp_path, here):  # noqa: F811
    broken = chat_bundle.copied_checkpoint(checkpoint, tmp_path / "broken", template)
    code, out, err = here("export", broken, "-o", tmp_path / "bundle")
    assert (code, out) == (1, "") and message in err and "--set chat=false" in err and "\x1b" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
    code, out, err = here("export", broken, "-o", tmp_path / "bundle", "--context", "64", "--set=chat=false")
    assert code == 0 and "chat template included" not in out, err


def test_where_a_template_is_looked_for(tmp_path):
    assert read_chat_template(tmp_path) is None
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None, "x": "y"}
    config["Odd_token"] = "z"
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "?"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "?", "eos_token": "older"}))

    def read(**more):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **more}))
        return read_chat_template(tmp_path)

    assert read() is None
    assert read(chat_template="one")[:2] == ("one", tokens)
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    assert read(chat_template=named).text == "two" and read(chat_template=named[:1]).text == "tools"
    for wrong in (7, [{"name": "default", "template": 7}]):
        with pytest.raises(MerinoError, match="not a string"):
            read(chat_template=wrong)
    (tmp_path / "chat_template.jinja").write_text("three")
    assert read(chat_template="one")[:2] == ("three", tokens)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(MerinoError, match="not an object"):
        read_chat_template(tmp_path)


def test_a_gguf_file_has_its_template_and_the_texts_of_its_tokens():
    metadata = {
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a"], "tokenizer.ggml.token_type": np.array([3, 3, 1]),
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.chat_template": chat_templates.CHATML,
    }  # fmt: skip
    result = chat_template(metadata, "x.gguf")
    assert result == ChatTemplate(chat_templates.CHATML, {"eos_token": "</s>"}, "tokenizer.chat_template in x.gguf")
    for none in (None, "", 7):
        assert chat_template({**metadata, "tokenizer.chat_template": none}, "x.gguf") is None


@pytest.mark.parametrize(("in_file", "in_config", "expected"), [
    ([5, 7], 7, (5, 7)), (5, [7, 5], (5, 7)), (None, 7, (7,)), ([], None, ()), ("absent", [1, 2], (1, 2)),
    (99, 7, None), ([5, "7"], 7, None), (5, -1, None), (True, 7, None),
])  # fmt: skip
def test_stop_ids_are_those_of_both_files(in_file, in_config, expected, tmp_path):
    if in_file != "absent":
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": in_file}))
    if expected is None:
        with pytest.raises(MerinoError, match="eos_token_id is .*allowed: 0 to 49"):
            stop_ids_of(tmp_path, in_config, 50)
    else:
        assert stop_ids_of(tmp_path, in_config, 50) == expected
