"""`bench --peers`: rows of other engines beside ours, their models made in a folder that goes when the run ends."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merino_bench.harness.cases import BenchRequest, Case
from merino_edge.benchmarking.peers.engines import parse_engines
from merino_edge.benchmarking.peers.rows import Peers, peer_records
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

MODEL_SOURCE = "merino_edge.families.merino.random:random_decoder"  # runs in the measured process, so by name
PeerRows = Callable[[Case, BenchRequest], list[dict[str, Any]]]


@contextmanager
def peer_rows(engines: str | None, folders: Sequence[str]) -> Iterator[PeerRows | None]:
    """What `bench_command` calls for more rows; None where no engine is asked for. A bundle that cannot be read has
    a failed row of ours already, and none of theirs. Raises MerinoError for an engine that is not known."""
    if engines is None:
        yield None
        return
    names = parse_engines(engines)
    bundles = []
    for folder in folders:
        try:
            bundles.append(load_bundle(folder, verify=False))
        except MerinoError:
            continue
    with tempfile.TemporaryDirectory(prefix="merino-peers-") as made:
        peers = Peers(names, Path(made), MODEL_SOURCE)
        yield lambda case, request: peer_records(peers, bundles, case, request)
