"""The board's command line, `merino`: the runtime's verbs, `bench` and `probe`.

numpy and what needs it are imported inside the functions, so that a board without numpy gets a message.
"""
import sys

if __name__ == "__main__":  # `python -m` puts the current folder on the path, where an argparse.py may be a stranger's
    from merino_runtime.io.start import leave_current_folder

    leave_current_folder()

import argparse
from typing import Callable, Optional, Sequence, Tuple

from merino_bench.harness.cases import (
    DEFAULT_PROMPT,
    DEFAULT_STEPS,
    START_PROMPT,
    BenchRequest,
    parse_depths,
    parse_lengths,
    parse_threads,
)
from merino_runtime.__main__ import main as runtime_main
from merino_runtime.backends import BACKENDS, TENSORRT, backend_of_machine
from merino_runtime.bundle.requirements import require
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import Verb
from merino_runtime.serving.command import add_serve, run_serve


def main(argv: Optional[Sequence[str]] = None) -> int:
    return runtime_main(argv, extra_verbs=VERBS)


def _checked(parse: Callable[[str], Tuple[int, ...]]) -> Callable[[str], Tuple[int, ...]]:
    """Return `parse` with the error type of argparse, which then prints the usage too."""
    def parsed(text: str) -> Tuple[int, ...]:
        try:
            return parse(text)
        except MerinoError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return parsed


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = ("Lists and ranges: 128,512 or 1-4 or 128-512+128 or 128-2048*2. Repetitions are shared out "
                          "to up to 5 fresh processes per row, interleaved with the other bundles.")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="bundle folders")
    parser.add_argument("--baseline", metavar="BUNDLE", action="append", default=[], dest="baselines",
                        help="bundle folder of the baseline; repeat for more: a bundle is "
                             "compared with the baseline of its own format, else with the first")
    parser.add_argument("-p", type=_checked(parse_lengths), metavar="N,...", dest="prompts",
                        help=f"prompt lengths, 0: none (default {DEFAULT_PROMPT}, or half of a short context)")
    parser.add_argument("-n", type=_checked(parse_lengths), metavar="N,...", dest="steps",
                        help=f"decode steps, 0: none (default {DEFAULT_STEPS}, or what a short context holds)")
    parser.add_argument("-d", type=_checked(parse_depths), metavar="N,...", dest="depths", default=(0,),
                        help=f"cached tokens before each test (default 0; decoding then starts behind {START_PROMPT})")
    parser.add_argument("-r", type=int, default=5, metavar="N", dest="repetitions",
                        help="repetitions (default %(default)s)")
    parser.add_argument("-t", "--threads", type=_checked(parse_threads), metavar="N,...", default=(),
                        help="numbers of threads; default: the bundle's setting")
    parser.add_argument("--backend", choices=BACKENDS,
                        help="backend of all bundles; default: tensorrt on a Jetson that has it, else the first listed")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="S", dest="timeout_s",
                        help="time limit in seconds for all repetitions of a row (default %(default)g)")
    parser.add_argument("--format", default="md", choices=("md", "json", "jsonl"), dest="output",
                        help="output format (default %(default)s)")
    parser.add_argument("-o", metavar="FILE", dest="save",
                        help="also save the records as JSON; FILE.jsonl is appended to, row by row")


def _bench(arguments: argparse.Namespace) -> int:
    require("numpy")
    from merino_bench.harness.run import bench_command

    request = BenchRequest(arguments.prompts, arguments.steps, arguments.repetitions, arguments.threads,
                           arguments.depths, backend=arguments.backend)
    return bench_command(arguments.bundles, request, arguments.baselines, output=arguments.output,
                         save_path=arguments.save, timeout_s=arguments.timeout_s)


def _add_probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", default="probe.json", metavar="FILE", dest="path",
                        help="output path of the measurements (default %(default)s)")
    parser.add_argument("--backend", choices=BACKENDS,
                        help="onnxruntime (CPU) or tensorrt (GPU); default: tensorrt on a Jetson that has it")


def _probe(arguments: argparse.Namespace) -> int:
    require("numpy")
    from merino_bench.probe.run import run_probe
    from merino_runtime.io.outputs import is_stdout
    from merino_runtime.io.streams import say, stderr_is_terminal

    backend = backend_of_machine(arguments.backend, say)
    say("building small engines and timing them, for minutes; let nothing else run" if backend == TENSORRT else
        "measuring for at most a minute; let nothing else run")
    probe = run_probe(arguments.path, report=say if stderr_is_terminal() else None, backend=backend)
    state = f" The machine was {' and '.join(probe['flags'])} meanwhile: measure again." if probe["flags"] else ""
    left = f" {len(probe['left_out'])} graphs were left out, since the time was up." if probe["left_out"] else ""
    next_step = "" if is_stdout(arguments.path) else (
        f" On the workstation: merino-edge calibrate --probe {arguments.path} --board ID -o profile.toml")
    say(f"wrote {arguments.path} after {probe['seconds']:.0f} s.{state}{left}{next_step}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from merino_bench.sensors.energy import open_sensors

    return run_serve(arguments, open_sensors())


VERBS = (Verb("bench", "measure speed and memory", _add_bench, _bench),
         Verb("probe", "measure this board, to calibrate its profile", _add_probe, _probe),
         Verb("serve", "serve bundles to clients of OpenAI's and Ollama's interfaces", add_serve, _serve))

if __name__ == "__main__":
    sys.exit(main())
