"""Conversations as text: parts and Jinja give the same, and the template's own text is distinguished from a user's."""
import time

import chat_templates
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st

from merino_runtime.bundle import Chat, ChatParts, MessageTexts, SystemParts
from merino_runtime.chat.template import Turn, by_jinja, by_parts, compiled, messages_of, rendered, text_of
from merino_runtime.errors import MerinoError

pytest.importorskip("jinja2")

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\ue000\ue001"), max_size=12)
TEXT = TEXT | st.sampled_from(["<|im_end|>", " a\n", "<think>\nhm\n</think>\n\nyes", "</think>", "{{ x }}", ""])
CONVERSATION = st.tuples(st.none() | TEXT, st.lists(st.builds(Turn, TEXT, TEXT), max_size=3), TEXT)


def parts_of(described):
    return ChatParts(**dict(described, system=SystemParts(**described["system"]),
                            texts=MessageTexts(**described["texts"])))


def joined(pieces):
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("template, described", [
    (chat_templates.CHATML, chat_templates.CHATML_PARTS), (chat_templates.QWEN3, chat_templates.QWEN3_PARTS)])
def test_parts_and_jinja_give_the_same_text_and_the_same_pieces(template, described):
    render, chat, parts = compiled(template, "it"), Chat("it", chat_templates.TOKENS, None), parts_of(described)

    @examples(100)
    @given(CONVERSATION, st.booleans())
    def check(conversation, no_think):
        own = by_parts(parts, *conversation, no_think=no_think and parts.no_think is not None)
        assert joined(own) == rendered(render, chat.tokens, messages_of(*conversation), no_think)
        other = by_jinja(render, chat, *conversation, no_think=no_think)
        assert joined(other) == joined(own)
        assert [piece for piece in other if not piece.own] == [piece for piece in own if not piece.own]
        assert [piece.turn for piece in own if piece.turn is not None] == list(range(len(conversation[1])))

    check()


@examples(100)
@given(CONVERSATION)
def test_where_no_parts_fit_jinja_still_tells_the_texts(conversation):
    system, turns, user = conversation
    render, chat = compiled(chat_templates.MISTRAL, "it"), Chat("it", chat_templates.TOKENS, None)
    pieces = by_jinja(render, chat, *conversation, no_think=False)
    assert joined(pieces) == rendered(render, chat.tokens, messages_of(*conversation))
    assert [piece.text for piece in pieces if piece.turn is not None] == [turn.answer.strip() for turn in turns]
    output = [turn.user for turn in turns] + [user] + [system] * (system is not None)
    assert sorted(piece.text for piece in pieces if not piece.own and piece.turn is None) == sorted(output)


@pytest.mark.parametrize("kind, expected", [
    ("whole", " \n<think>a</think>\n\n b "), ("stripped", "<think>a</think>\n\n b"), ("answer", "\n\n b "),
    ("answer_lines", " b "), ("answer_stripped", "b")])
def test_what_is_taken_of_a_text(kind, expected):
    assert text_of(kind, " \n<think>a</think>\n\n b ") == expected
    assert text_of(kind, "\n\nb") == ("b" if kind.endswith("stripped") else "\n\nb")


def test_the_date_is_todays():
    described = dict(chat_templates.CHATML_PARTS, begin="It is \0, ", date_format="%d %b %Y")
    assert joined(by_parts(parts_of(described), None, (), "x", False)).startswith(time.strftime("It is %d %b %Y, x"))


def test_a_system_message_is_refused_where_the_template_has_none():
    with pytest.raises(MerinoError, match="takes no system message.*--system"):
        by_parts(parts_of(chat_templates.CHATML_PARTS)._replace(system=None), "Be brief", (), "x", False)
    silent = compiled("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "it")
    with pytest.raises(MerinoError, match="takes no system message"):
        by_jinja(silent, Chat("it", {}, None), "Be brief", (), "x", False)


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}", "{{ messages[0].content }}{{ messages[0].content }}",
    "nothing"])
def test_texts_that_a_template_changes_are_not_guessed(template):
    with pytest.raises(MerinoError, match="texts of this conversation in a way of its own.*/reset"):
        by_jinja(compiled(template, "it"), Chat("it", {}, None), None, (), "hello", False)


@pytest.mark.parametrize("template", [
    chat_templates.RAISING, "{{ 1 / 0 }}", "{{ messages.nothing.at.all }}", "{{ messages[0].__class__.__mro__ }}",
    "{{ messages | attr('__class__') }}", "{{ messages.append(1) }}"])
def test_what_a_template_raises_or_may_not_do_is_one_line(template):
    with pytest.raises(MerinoError) as caught:
        rendered(compiled(template, "it"), {}, messages_of(None, (), "x"))
    assert "chat template" in str(caught.value) and not set(str(caught.value)) & set("\n\x1b")


def test_no_format_leads_out_of_the_sandbox():
    """Newer versions of jinja2 format within the sandbox; in the old one `format` is refused."""
    try:
        result = rendered(compiled("{{ '{0.__class__}'.format(messages) }}", "it"), {}, messages_of(None, (), "x"))
    except MerinoError:
        return
    assert "class" not in result


@pytest.mark.parametrize("template", ["{% for %}", "{{ x", "{% generation %}", "{{ x | no_such_filter }}"])
def test_what_is_no_template_is_told(template):
    with pytest.raises(MerinoError, match="here.jinja is not a chat template"):
        compiled(template, "here.jinja")


def test_tags_and_filters_of_transformers_are_known():
    text = ("{% generation %}{{ messages | tojson }}{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}"
            "{{ strftime_now('%Y') }}")
    result = rendered(compiled(text, "it"), {}, messages_of(None, (), "<é>"))
    assert result == '[{"role": "user", "content": "<é>"}]' + time.strftime("%Y")
