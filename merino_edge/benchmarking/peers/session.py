"""`bench --peers`: rows of other engines beside ours. Their models live in a temporary folder, for one run."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merino_bench.harness.cases import BenchRequest, Case
from merino_edge.benchmarking.peers.engines import parse_engines
from merino_edge.benchmarking.peers.rows import Peers, peer_records
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

PeerRows = Callable[[Case, BenchRequest], list[dict[str, Any]]]


@contextmanager
def peer_rows(engines: str | None, folders: Sequence[str]) -> Iterator[PeerRows | None]:
    """A function that measures more rows for `bench_command`; None where no engine is asked for.

    A bundle that cannot be read is left out: it has a failed row of ours already.
    Raises MerinoError for an unknown engine.
    """
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
    with scratch_folder(Path(tempfile.gettempdir()) / "merino-peers") as made:
        peers = Peers(names, made)
        yield lambda case, request: peer_records(peers, bundles, case, request)
