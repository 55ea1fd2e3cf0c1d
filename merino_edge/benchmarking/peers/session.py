"""`bench --peers`: other engines beside our bundles. Their models live in a temporary folder, for one run."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from merino_bench.harness.turns import Entrant
from merino_edge.benchmarking.peers.engines import parse_engines
from merino_edge.benchmarking.peers.entrants import Peers, peer_entrants
from merino_edge.benchmarking.peers.given import given_file
from merino_edge.families.checkpoint import check_checkpoint
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError


def check_peers(engines: str | None, source: Path | None) -> None:
    """Raises MerinoError for an unknown engine, and for a source that is of no use, before a model is made."""
    if engines is None and source is not None:
        raise MerinoError("--peers-file goes with --peers: name the engines, such as --peers llama.cpp")
    if engines is not None:
        parse_engines(engines)
    if source is not None and not source.exists():
        raise MerinoError(f"--peers-file {source} does not exist: give a GGUF or a Hugging Face folder")


@contextmanager
def peers_beside(
    engines: str | None, folders: Sequence[str], seed: int, say: Callable[[str], None], source: Path | None = None
) -> Iterator[list[Entrant]]:
    """The entrants for `bench_command`; none where no engine is asked for.

    A bundle that cannot be read is left out: it has a failed row of ours already.
    `source`: a GGUF or a Hugging Face folder with the bundles' weights, for llama.cpp. Raises MerinoError for an
    unknown engine, and where that source is none.
    """
    check_peers(engines, source)
    if engines is None:
        yield []
        return
    names = parse_engines(engines)
    checkpoint = source if source and source.is_dir() else None
    if checkpoint:
        check_checkpoint(checkpoint)
    given = given_file(source) if source and not checkpoint else None
    bundles = []
    for folder in folders:
        try:
            bundles.append(load_bundle(folder, verify=False))
        except MerinoError:
            continue
    with scratch_folder(Path(tempfile.gettempdir()) / "merino-peers") as made:
        yield peer_entrants(Peers(names, made, given, checkpoint), bundles, seed, say)
