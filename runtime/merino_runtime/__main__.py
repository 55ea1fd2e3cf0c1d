"""The board's command line: `python3 merino.pyz VERB`, or `merino VERB` where it is installed.

Each verb parses its arguments and calls one function of `commands`. Exit codes: 0 done, 1 the request cannot be met,
2 wrong usage, 130 ctrl-C (128 + SIGINT), 141 the reader of stdout closed the pipe (128 + SIGPIPE).
"""
import sys

if __name__ == "__main__":  # `python -m` puts the current folder on the path, where an argparse.py may be a stranger's
    from merino_runtime.io.start import leave_current_folder

    leave_current_folder()

import argparse
from typing import Dict, Optional, Sequence, Tuple

from merino_runtime import __version__, commands
from merino_runtime.backends import BACKENDS
from merino_runtime.delivery import verbs
from merino_runtime.io.streams import Verb, exit_code
from merino_runtime.sampling import CHAT_SETTINGS, GENERATE_SETTINGS, Sampling, settings_help


def main(argv: Optional[Sequence[str]] = None, extra_verbs: Sequence[Verb] = ()) -> int:
    return exit_code(lambda: _called(argv, [*VERBS, *extra_verbs, *verbs.VERBS]))


def _called(argv: Optional[Sequence[str]], all_verbs: Sequence[Verb]) -> int:
    try:
        arguments = _parser(all_verbs).parse_args(argv)
    except SystemExit as ended:  # of --help, --version and wrong usage: what they print may not be printable either
        return int(ended.code or 0)
    return arguments.run(verbs.with_installed(arguments))


def _parser(all_verbs: Sequence[Verb]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="merino", description="Runs a language model made for a board.")
    parser.add_argument("--version", action="version", version=f"merino {__version__}")
    choices = parser.add_subparsers(dest="verb", metavar="VERB")
    choices.required = True  # an argument of add_subparsers from Python 3.7 on
    for verb in all_verbs:
        subparser = choices.add_parser(verb.name, help=verb.help, description=verb.help)
        verb.add_arguments(subparser)
        subparser.set_defaults(run=verb.run)
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE",
                        help="bundle folder; `.` is the current one, `installed` the bundle of the installed release")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_bundle(parser)
    # Optional only where a pipe or a file can give it: on a terminal a forgotten PROMPT is wrong usage.
    parser.add_argument("prompt", metavar="PROMPT", nargs=None if commands.stdin_is_terminal() else "?",
                        help="prompt; `-`, or none after a pipe: read from stdin")
    parser.add_argument("-n", type=int, default=128, metavar="N", dest="max_new_tokens",
                        help="maximum number of new tokens (default %(default)s)")
    _add_sampling(parser, GENERATE_SETTINGS)
    parser.add_argument("--stop", action="append", default=[], metavar="S",
                        help="stop string, not printed; repeat for more")
    parser.add_argument("--json", action="store_true", help="print one JSON line per token, the measurements last")
    _add_schema(parser)
    parser.add_argument("--tools", metavar="FILE",
                        help="constrain the text to a call of one of the tools in this JSON file (OpenAI's list)")
    parser.add_argument("--cache", metavar="FILE",
                        help="file of the prompt's KV cache: written if FILE does not exist; else read, and only the "
                             "rest of a prompt with the same beginning is prefilled")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    _add_bundle(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message; default: the chat template's")
    parser.add_argument("--no-think", action="store_true", help="disable thinking, where the chat template supports it")
    parser.add_argument("-n", type=int, metavar="N", dest="max_new_tokens",
                        help="maximum number of tokens per answer; default: what the context holds")
    _add_sampling(parser, CHAT_SETTINGS)
    _add_schema(parser)
    parser.add_argument("--json", action="store_true",
                        help="print one JSON line per event; stdin has a message or command per line, and a line of "
                             "U+0003 stops the pending answers")


def _add_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json-schema", metavar="FILE",
                        help="constrain the text to JSON that is valid for the schema in this file")


def _add_sampling(parser: argparse.ArgumentParser, settings: Dict[str, Tuple[type, str]]) -> None:
    parser.add_argument("--temperature", type=float, default=Sampling().temperature, metavar="N",
                        help="sampling temperature; 0: greedy (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help=settings_help(settings))


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="PATH", help="bundle folder, or package (NAME.merino)")
    parser.add_argument("--check", action="store_true",
                        help="verify the hash of each file, and the signature of a package, instead of describing them")
    parser.add_argument("--trust", action="append", default=[], metavar="KEY.pub",
                        help="as --check, and this public key must have signed the package; repeat for more")
    parser.add_argument("--json", action="store_true",
                        help="print bundle.json or the manifest, and this machine; with --check what was verified")


def _add_selftest(parser: argparse.ArgumentParser) -> None:
    _add_bundle(parser)
    parser.add_argument("--backend", choices=BACKENDS,
                        help="backend; default: tensorrt on a Jetson that has it, else the first that the bundle lists")


def _add_build_engine(parser: argparse.ArgumentParser) -> None:
    _add_bundle(parser)
    parser.add_argument("--fp16", action="store_true",
                        help="float16 kernels for a float32 bundle, except norms; replaces the other engine")
    parser.add_argument("--workspace-mb", type=int, metavar="N",
                        help="GPU workspace of a kernel in MB, beside its inputs and outputs (default 128)")


VERBS = (
    Verb("generate", "continue a prompt", _add_generate, commands.run_generate),
    Verb("chat", "chat with an instruction-tuned model", _add_chat, commands.run_chat),
    Verb("info", "describe a bundle or a package, and whether it fits this machine; or verify it", _add_info,
         commands.run_info),
    Verb("selftest", "compare greedy decoding with the bundle's golden ids", _add_selftest, commands.run_selftest),
    Verb("build-engine", "build the bundle's TensorRT engine for this GPU, once; other commands then load it",
         _add_build_engine, commands.run_build_engine),
)

if __name__ == "__main__":
    sys.exit(main())
