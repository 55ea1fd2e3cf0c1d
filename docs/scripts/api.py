"""docs/reference/python-api.md: the public names of merino_runtime's API with their signatures and docstrings."""

import inspect
import re
import textwrap
from typing import Any

from merino_runtime import api
from merino_runtime.chat.conversation import ChatOptions, ChatSession
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Done, Generation, PromptCut, Token
from merino_runtime.sampling import GenerateOptions, Sampling

CLASSES = (
    api.LanguageModel, api.Conversation, ChatSession, GenerateOptions, ChatOptions, Sampling, Generation, Token, Done,
    PromptCut, MerinoError,
)  # fmt: skip


def text() -> str:
    lines = [
        "# Python API: signatures",
        "",
        "Made from the code, which runs on Python 3.6 and later. How the names belong together, with an example:"
        " [Python API](../python.md).",
        *shown("## ", api.open_model, "merino_runtime.api"),
    ]
    for each in CLASSES:
        lines += ["", f"## {each.__module__}.{each.__name__}", "", paragraphs(each)]
        lines += fields_of(each)
        for name, member in vars(each).items():
            if not name.startswith("_") and callable(getattr(member, "__func__", member)) and inspect.getdoc(member):
                lines += shown("### ", member, each.__name__)
            elif isinstance(member, property) and inspect.getdoc(member):
                lines += ["", f"### {each.__name__}.{name}", "", paragraphs(member)]
    return "\n".join(lines) + "\n"


def shown(mark: str, function: Any, owner: str) -> list[str]:
    function = getattr(function, "__func__", function)
    return [
        "",
        f"{mark}{owner}.{function.__name__}",
        "",
        "```python",
        signature(function),
        "```",
        "",
        paragraphs(function),
    ]


def signature(function: Any) -> str:
    """As it is written, whatever the version of Python that reads it."""
    source = inspect.getsource(function)
    head = re.search(r"def (.*?):\n", source, re.DOTALL)
    assert head
    words = re.sub(r'"([A-Z]\w+)"', r"\1", re.sub(r"\s+", " ", head[1]))  # forward references
    return textwrap.fill(words, 100, subsequent_indent="    ", break_long_words=False)


def fields_of(one: Any) -> list[str]:
    """Of a NamedTuple: its fields, with the comments behind them."""
    if not hasattr(one, "_fields"):
        return []
    fields = next(kind for kind in one.__mro__ if tuple in kind.__bases__)  # a subclass checks them
    rows = re.findall(
        r"^    (\w+): ([^=#\n]+?)(?: = ([^#\n]+?))?(?:  # (.*))?$", inspect.getsource(fields), re.MULTILINE
    )
    cells = [(name, kind, default, what) for name, kind, default, what in rows if name in one._fields]
    table = [
        f"| `{name}` | `{kind}` | {f'`{default}`' if default else ''} | {what} |" for name, kind, default, what in cells
    ]
    return ["", "| field | type | default | what |", "| --- | --- | --- | --- |", *table]


def paragraphs(one: Any) -> str:
    doc = (inspect.getdoc(one) or "").replace("<", "&lt;")
    return "" if doc.startswith(getattr(one, "__name__", " ") + "(") else doc
