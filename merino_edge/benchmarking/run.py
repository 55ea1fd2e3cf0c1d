"""`bench` on the workstation: the board's harness, with baselines by name and other engines beside."""

import sys
from collections.abc import Sequence
from pathlib import Path

from merino_bench.harness.cases import BenchRequest
from merino_bench.harness.progress import Progress
from merino_bench.harness.run import bench_command
from merino_edge.benchmarking.peers.session import peer_rows
from merino_edge.embedded import bundle_path


def run_benchmark(
    bundles: Sequence[str], request: BenchRequest, baseline: str | None, baseline_precision: str | None, output: str,
    save: Path | None, timeout_s: float, peers: str | None = None, progress: Progress | None = None,
) -> int:  # fmt: skip
    """-> the exit code, 1 where a row failed. Raises MerinoError, and KeyboardInterrupt after what is complete was
    written."""
    folders = [bundle_path(bundle) for bundle in bundles]
    bases: list[str] = []
    if baseline is not None:
        from merino_edge.benchmarking.baselines import baseline_bundles  # loads torch

        bases = baseline_bundles(bundle_path(baseline), folders, baseline_precision, say)
    with peer_rows(peers, [*folders, *bases]) as more_rows:
        return bench_command(
            folders, request, bases, output, None if save is None else str(save), timeout_s, progress, more_rows
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
