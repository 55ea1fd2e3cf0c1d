"""`bench` on the workstation: the board's harness, with baselines by name and other engines beside."""

from collections.abc import Callable, Sequence
from pathlib import Path

from merino_bench.harness.cases import BenchRequest, check_counts
from merino_bench.harness.render import check_can_save
from merino_bench.harness.run import Progress, bench_command, check_timeout
from merino_bench.harness.turns import check_baselines
from merino_edge.benchmarking.peers.session import check_peers, peers_beside
from merino_edge.export.request import PRECISIONS
from merino_edge.families.names import bundle_path, resolve
from merino_edge.families.zoo import Model, exportable_models
from merino_runtime.errors import MerinoError


def run_benchmark(
    bundles: Sequence[str], request: BenchRequest, baseline: str | None, baseline_precision: str | None, output: str,
    save: Path | None, timeout_s: float, peers: str | None, progress: Progress | None, say: Callable[[str], None],
    peers_file: Path | None = None,
) -> int:  # fmt: skip
    """Measure, and write the records to stdout in the form `output` and to the file `save`.

    Returns the exit code, 1 where a row failed. `timeout_s`: for all repetitions of a row. `say` gets a line for each
    model that must be made first: a baseline, or another engine's. `peers_file`: a GGUF with the bundles' weights
    for llama.cpp. Raises MerinoError for a request that is not
    possible, and KeyboardInterrupt after the complete rows were written.
    """
    folders = [bundle_path(bundle) for bundle in bundles]
    bases: list[str] = []
    check_counts(request)
    check_timeout(timeout_s)
    check_peers(peers, peers_file)
    if save is not None:
        check_can_save(str(save))
    check_baseline(baseline, baseline_precision)
    if baseline is not None:
        from merino_edge.benchmarking.baselines import baseline_bundles  # loads torch

        bases = baseline_bundles(baseline, folders, baseline_precision, say)
    with peers_beside(peers, [*folders, *bases], request.seed, say, peers_file) as others:
        return bench_command(
            folders, request, bases, output, None if save is None else str(save), timeout_s, progress, others
        )


def check_baseline(baseline: str | None, precision: str | None) -> None:
    """Raises MerinoError where `baseline` is no name and no bundle, or has no such precision, before torch is loaded or
    a model is made."""
    known = PRECISIONS["fused"]
    if precision is not None and precision not in known:
        raise MerinoError(f"--baseline-precision {precision} is not known: choose one of {', '.join(known)}")
    if precision is not None and baseline is None:
        raise MerinoError("--baseline-precision is of a baseline by name: give --baseline opt-350m, or leave it out")
    if baseline is None:
        return
    found = resolve(baseline)
    if not isinstance(found, Model):
        if precision is not None:
            raise MerinoError(
                f"--baseline-precision goes with {', '.join(exportable_models())}: {baseline!r} is taken for a bundle,"
                " which has its own. Leave the option out, or name one of these"
            )
        try:
            check_baselines([found])
        except MerinoError as error:
            raise MerinoError(f"{error} Or name one: {', '.join(exportable_models())}") from error
