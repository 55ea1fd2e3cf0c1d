"""The board's command line, `merino`: the runtime's verbs and `bench`.

numpy and all that needs it is imported inside the functions: `main` of the runtime prepares for it first.
"""
import argparse
import sys
from typing import Optional, Sequence, Tuple

from merino_bench.workload import START_PROMPT, USUAL_PROMPT, USUAL_STEPS, Workload, parse_lengths
from merino_runtime.__main__ import Verb
from merino_runtime.__main__ import main as runtime_main
from merino_runtime.errors import MerinoError


def main(argv: Optional[Sequence[str]] = None) -> int:
    return runtime_main(argv, extra_verbs=VERBS)


def _lengths(text: str) -> Tuple[int, ...]:
    try:
        return parse_lengths(text)
    except MerinoError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folders of bundles")
    parser.add_argument("--baseline", metavar="BUNDLE", help="the folder that the others are compared with")
    parser.add_argument("-p", type=_lengths, metavar="N,...", dest="prompts",
                        help=f"prompt lengths, 0: none (default {USUAL_PROMPT}, or half of a short context)")
    parser.add_argument("-n", type=_lengths, metavar="N,...", dest="steps",
                        help=f"decode steps behind {START_PROMPT} cached tokens, 0: none (default "
                             f"{USUAL_STEPS}, or what a short context holds)")
    parser.add_argument("-r", type=int, default=5, metavar="N", dest="repetitions",
                        help="repetitions (default %(default)s)")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: the bundle's choice")
    parser.add_argument("-o", default="md", choices=("md", "json", "jsonl", "csv"), dest="output",
                        help="form of the output (default %(default)s)")
    parser.add_argument("--save", metavar="FILE", help="write the records there too, as JSON")


def _bench(arguments: argparse.Namespace) -> int:
    from merino_bench.bench import bench_command

    workload = Workload(arguments.prompts, arguments.steps, arguments.repetitions, arguments.threads)
    return bench_command(arguments.bundles, workload, arguments.baseline, arguments.output, arguments.save)


VERBS = (Verb("bench", "measure speed and memory", _add_bench, _bench),)

if __name__ == "__main__":
    sys.exit(main())
