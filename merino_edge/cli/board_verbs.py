"""The commands that the board has too: `generate`, `chat`, `serve` and `info`. The board's parser reads their
arguments, and the board's functions run them.

Here BUNDLE may also be `embedded`, and `generate` and `chat` take --ssh to run on a board.
"""

from argparse import ArgumentParser, Namespace
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand

from merino_bench.__main__ import VERBS as BENCH_VERBS
from merino_edge.cli.options import HOST, SSH
from merino_runtime.__main__ import VERBS as RUNTIME_VERBS
from merino_runtime.io.streams import Verb

NAMES = ("generate", "chat", "serve", "info")
VERBS = {verb.name: verb for verb in (*RUNTIME_VERBS, *BENCH_VERBS) if verb.name in NAMES}
OVER_SSH = ("generate", "chat")
LOCAL_OPTIONS = ("cache", "json_schema", "tools")  # files of this machine
EPILOG = "A bundle may be `embedded`, the trained model that comes with merino-edge"


class Completion(NamedTuple):
    """What a shell's completion reads of click's CompletionItem, which typer does not export."""

    value: str
    type: str = "plain"
    help: str | None = None


class BoardCommand(TyperCommand):
    """A command that passes all its words, --help included, to the board's parser."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        options = [name for action in parser_of(VERBS[ctx.info_name])._actions for name in action.option_strings]
        return [Completion(option) for option in options if incomplete and option.startswith(incomplete)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return args


def add_to(app: typer.Typer, name: str, panel: str) -> None:
    """Add one of NAMES to the workstation's commands, in this group of the help."""

    def command(context: typer.Context) -> None:
        raise typer.Exit(called(name, context.args))

    text = VERBS[name].help
    app.command(name, cls=BoardCommand, add_help_option=False, rich_help_panel=panel,
                help=f"{text[0].upper()}{text[1:]}.")(command)


def parser_of(verb: Verb) -> ArgumentParser:
    over_ssh = verb.name in OVER_SSH
    parser = ArgumentParser(prog=f"merino-edge {verb.name}", description=verb.help, epilog=EPILOG + (
        ", and with --ssh `installed`, the board's installed release." if over_ssh else "."
    ))  # fmt: skip
    verb.add_arguments(parser)
    if over_ssh:
        parser.add_argument("--ssh", metavar=HOST, help=SSH)
    return parser


def called(name: str, words: list[str]) -> int:
    """Run a command -> its exit code."""
    from merino_edge.families.names import bundle_path

    verb, parser = VERBS[name], parser_of(VERBS[name])
    arguments = parser.parse_args(words)
    if name in OVER_SSH and arguments.ssh is not None:
        from merino_edge.cli.over_ssh import chat_there, generate_there, refuse_local
        from merino_runtime.commands import chat_options, generate_options

        refuse_local(**{option: getattr(arguments, option, None) for option in LOCAL_OPTIONS})
        check, run = (generate_options, generate_there) if name == "generate" else (chat_options, chat_there)
        check(arguments)  # before the bundle is copied
        return run(arguments, words_of(parser, arguments))
    if name == "serve":
        arguments.bundles = [bundle_path(path) for path in arguments.bundles]
    else:
        arguments.bundle = bundle_path(arguments.bundle)
    return verb.run(arguments)


def words_of(parser: ArgumentParser, arguments: Namespace) -> list[str]:
    """Return the options for the board as words, without defaults and without --ssh."""
    words = []
    for action in parser._actions:
        value = getattr(arguments, action.dest, action.default)
        if not action.option_strings or value == action.default or action.dest == "ssh":
            continue
        option = action.option_strings[-1]
        if action.nargs == 0:
            words.append(option)
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"{option}={part}" if option.startswith("--") else f"{option}{part}" for part in values]
    return words
