"""Measure other engines beside bundles, in interleaved runs (`bench --peers`). Their rows have the keys of a bundle's
rows.

Each engine runs in a fresh process, with the same prompt ids, threads and lengths, on a model of equal geometry with
random weights: speed does not depend on the values. Rows differ in `engine` and `precision`. An engine that is missing,
or has no such model, gets a failed row with the reason. The models are in a temporary folder, for one run.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from merino_bench.fresh_process import run_separately
from merino_bench.harness import record
from merino_bench.harness.cases import Case
from merino_bench.harness.turns import TIME_OF_A_ROW, Engine, Measured
from merino_edge.benchmarking.engines import GENERIC_BUILD, OF_BUNDLES, Peer, missing
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError

PROCESS, MODELS = "merino_edge.benchmarking.engine_process", "merino_edge.benchmarking.engines"
TIMEOUT_S = 3600.0  # of making one model
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def peers_beside(
    peers: Sequence[Peer], folders: Sequence[str], say: Callable[[str], None]
) -> Iterator[list[Engine]]:
    """Yield the engines for `bench_command`. A bundle that cannot be read is left out, because the harness gives it a
    failed row."""
    if not peers:
        yield []
        return
    bundles = []
    for folder in folders:
        with suppress(MerinoError):
            bundles.append(load_bundle(folder, verify=False))
    with scratch_folder(Path(tempfile.gettempdir()) / "merino-peers") as scratch:
        yield peer_engines(peers, scratch, bundles, say)


def peer_engines(
    peers: Sequence[Peer], folder: Path, bundles: Iterable[Bundle], say: Callable[[str], None] = lambda _: None
) -> list[Engine]:
    """Return an engine for each peer and geometry among the bundles; bundles of one model in several formats share it,
    but onnxruntime-genai runs each bundle.

    Their models are made in `folder` here, before anything is measured.
    """
    bundles, distinct = list(bundles), dict[str, Bundle]()
    for bundle in bundles:
        distinct.setdefault(geometry_key(bundle), bundle)
    sides = [(peer, bundle) for bundle in distinct.values() for peer in peers if peer.runner != OF_BUNDLES]
    sides += [
        (peer._replace(precision=bundle.precision, embedding=bundle.precision, file=Path(bundle.folder)), bundle)
        for bundle in bundles for peer in peers if peer.runner == OF_BUNDLES
    ]  # fmt: skip
    return [peer_engine(peer, folder, bundle, say) for peer, bundle in sides]


def peer_engine(peer: Peer, folder: Path, bundle: Bundle, say: Callable[[str], None]) -> Engine:
    identity = {
        "bundle": bundle.name, "precision": peer.shown_precision, "engine": peer.engine, "family": bundle.family,
        "architecture": bundle.architecture, "context": bundle.context, "weights": "random",
        "weights_source": "random, of equal geometry",
    }  # fmt: skip
    if peer.runner == OF_BUNDLES:
        identity |= {"weights": record.WEIGHTS[bundle.weights], "weights_source": bundle.weights_source}
    elif peer.file:
        identity |= {"weights": "real", "weights_source": f"file {peer.file.name}"}
    else:
        say(f"making the model of {bundle.name} for {peer.engine} {peer.shown_precision}")
    try:
        model = make_separately(peer, folder, bundle)
    except MerinoError as error:
        return Engine(identity, False, None, str(error))
    identity |= {"bundle_bytes": model["bytes"], "params": model["params"]}

    def measure(case: Case, repetitions: int, _first: bool, timeout_s: float) -> Measured:
        return measure_peer_separately(peer, bundle, model["path"], case, repetitions, timeout_s=timeout_s)

    def row(
        case: Case, processes: Sequence[Measured], _read_gb_s: float | None, _energy: dict[str, Any] | None,
        command: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Return a record without the bytes that a step reads and without energy, which are of bundles only."""
        row = record.record_of(identity, bundle, case, processes, command=command)
        row["bytes_per_token"] = None
        row["notes"] = [*model["notes"], *row["notes"]]
        if any(note.startswith(GENERIC_BUILD) for note in row["notes"]):
            row["flags"] = [*row["flags"], GENERIC_BUILD]
        if case.untimed:
            row["prefill_ms"] = None  # of more ids than the row's prompt
            row["notes"].append(f"each repetition prefills all {case.decode_start} ids, so there is no prefill_ms")
        return row

    return Engine(identity, False, None, "", measure, row=row)


def make_separately(peer: Peer, folder: Path, bundle: Bundle) -> dict[str, Any]:
    """Make the peer's model unless it exists, and return what `engines.make` does. Raise MerinoError with the reason if
    it cannot be made."""
    if reason := missing(peer):
        raise MerinoError(reason)
    key = geometry_key(bundle) + str(peer.file or "")
    place = folder / sha256(key.encode()).hexdigest()[:16]  # one per geometry, and per file that is given
    request = {
        "folder": str(place), "runner": peer.runner, "precision": peer.precision, "embedding": peer.embedding,
        "file": peer.file and str(peer.file), "family": bundle.family, "architecture": bundle.architecture,
    }  # fmt: skip
    return run_separately(MODELS, json.dumps(request), TIMEOUT_S)


def measure_peer_separately(
    peer: Peer, bundle: Bundle, path: str, case: Case, repetitions: int, timeout_s: float = TIMEOUT_S
) -> Measured:
    """Measure a peer in a fresh process and return the worker's keys. Raise MerinoError if it fails."""
    if case.untimed and not case.steps:
        raise MerinoError("other engines' prefills are measured into an empty cache only: leave -d out")
    counts = thread_counts(bundle, case.threads)  # those of the bundle's row
    threads = counts.decode if case.steps else counts.prefill
    request = {
        "engine": peer.engine, "runner": peer.runner, "path": path, "precision": peer.precision, "threads": threads,
        "prompt": case.decode_start, "steps": case.steps, "repetitions": repetitions,
        "vocab": bundle.vocab,
    }  # fmt: skip
    pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))  # no pool of an engine starts more than were requested
    return run_separately(PROCESS, json.dumps(request), timeout_s, pinned, TIME_OF_A_ROW)


def geometry_key(bundle: Bundle) -> str:
    return json.dumps([bundle.family, bundle.architecture], sort_keys=True)
