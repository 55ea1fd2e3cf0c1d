"""The pages of docs/reference but openapi.json: each command with all its options, from the two parsers, and the public
names of merino_runtime's API with their signatures and docstrings."""

import argparse
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from typer.main import get_command

from merino_bench.__main__ import VERBS as BENCH_VERBS
from merino_edge.cli import board_verbs
from merino_edge.cli.app import app
from merino_runtime import __main__ as board
from merino_runtime import api
from merino_runtime.chat.conversation import ChatOptions, ChatSession
from merino_runtime.delivery.verbs import VERBS as DELIVERY_VERBS
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Done, Generation, PromptCut, Token
from merino_runtime.io.streams import Verb
from merino_runtime.sampling import GenerateOptions, Sampling

NAMES = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def workstation() -> str:
    command: Any = get_command(app)
    lines = [
        "# Command line: merino-edge",
        "",
        "Made from the code. `merino-edge COMMAND --help` prints the same. Exit codes: 0 done, 1 the request cannot be",
        "met, 2 wrong usage, 130 ctrl-C, 141 the reader of the output closed it. A board has",
        "[its own commands](board-commands.md).",
    ]
    groups = {name: getattr(each, "commands", {"": each}) for name, each in command.commands.items()}
    named = {f"{name} {verb}".strip(): each for name, group in groups.items() for verb, each in group.items()}
    for name, each in named.items():
        if name in board_verbs.VERBS:
            lines += of_the_parser(f"merino-edge {name}", board_verbs.VERBS[name], board_verbs.parser_of)
            continue
        hints = typing.get_type_hints(each.callback, include_extras=True)
        kinds = {part: kind_of(hint) for part, hint in hints.items()}
        rows = [
            (words_of(one, kinds[one.name]), cell(one.help), default_of(one, kinds[one.name]))
            for one in each.params
            if one.name in kinds and not getattr(one, "hidden", False)
        ]
        arguments = [shown for shown, _, _ in rows if not shown.startswith("-")]
        lines += section(f"merino-edge {name}", " ".join([*arguments, "[OPTIONS]"]), summary(each.callback), rows)
    return "\n".join(lines) + "\n"


def kind_of(hint: Any) -> Any:
    """The type that an Annotated, optional or repeated annotation is of."""
    while get_origin(hint) is not None and get_origin(hint) is not typing.Literal:
        origin = get_origin(hint)
        parts = [one for one in get_args(hint) if one is not types.NoneType]
        if origin not in (Annotated, types.UnionType, typing.Union, list):
            break
        hint = parts[0]
    return hint


def words_of(parameter: Any, kind: Any) -> str:
    name = parameter.metavar or ("|".join(get_args(kind)) if get_origin(kind) else NAMES.get(kind, "TEXT"))
    if not parameter.opts[0].startswith("-"):
        shown = (parameter.metavar or parameter.opts[0].upper()).strip("[]")
        shown += "..." if parameter.nargs == -1 else ""
        return shown if parameter.required else f"[{shown}]"
    both = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return both if kind is bool else f"{both} {name}"


def default_of(parameter: Any, kind: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    value = value() if callable(value) else value
    if kind is bool or value is None or value == () or value == []:
        return "repeatable" if parameter.multiple else ""
    return f"`{value}`"


def summary(callback: Callable[..., Any]) -> str:
    return " ".join(inspect.getdoc(callback).split())  # type: ignore[union-attr]


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def section(title: str, usage: str, text: str, rows: Iterable[tuple[str, str, str]]) -> list[str]:
    table = [f"| `{shown}` | {what} | {default} |".replace("|  |", "| |") for shown, what, default in rows]
    table = [row.replace(shown, shown.replace("|", "\\|"), 1) for row, (shown, _, _) in zip(table, rows, strict=True)]
    head = ["", f"## {title}", "", text, "", "```", f"{title} {usage}", "```"]
    return [*head, *(["", "| option | what | default |", "| --- | --- | --- |", *table] if table else [])]


def on_the_board() -> str:
    lines = [
        "# Command line: merino.pyz on a board",
        "",
        "Made from the code. `python3 merino.pyz VERB`, or `merino VERB` where a package is installed.",
        "Exit codes are those of [merino-edge](command-line.md).",
    ]
    for verb in [*board.VERBS, *BENCH_VERBS, *DELIVERY_VERBS]:
        lines += of_the_parser(f"merino {verb.name}", verb, parser_of)
    return "\n".join(lines) + "\n"


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser


def of_the_parser(title: str, verb: Verb, parser_of: Callable[[Verb], argparse.ArgumentParser]) -> list[str]:
    parser = parser_of(verb)
    rows = [row_of(action) for action in parser._actions if action.dest != "help"]
    arguments = [shown for shown, _, _ in rows if not shown.startswith("-")]
    text = " ".join(filter(None, (sentence(verb.help), parser.epilog)))
    return section(title, " ".join([*arguments, "[OPTIONS]"]), text, rows)


def row_of(action: argparse.Action) -> tuple[str, str, str]:
    filled = (action.help or "").replace("%%", "%")
    for form in ("%(default)s", "%(default)g"):
        filled = filled.replace(form, form.replace("%(default)", "%") % action.default if form in filled else "")
    if action.option_strings:
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        shown = ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")
    else:
        shown = str(action.metavar or action.dest.upper()) + ("..." if action.nargs in ("+", "*") else "")
        shown = f"[{shown}]" if action.nargs in ("?", "*") or prompt_may_be_read(action) else shown
    return shown, cell(filled), "required" if action.required and action.option_strings else ""


def prompt_may_be_read(action: argparse.Action) -> bool:
    """`generate` requires its prompt on a terminal alone."""
    return action.dest == "prompt"


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


CLASSES = (
    api.LanguageModel, api.Conversation, ChatSession, GenerateOptions, ChatOptions, Sampling, Generation, Token, Done,
    PromptCut, MerinoError,
)  # fmt: skip


def python_api() -> str:
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
