"""Measure other engines beside bundles, in interleaved runs (`bench --peers`). Their rows have the keys of a bundle's
rows.

Each engine runs in a fresh process, with the same prompt ids, threads and lengths, on a model of equal geometry with
random weights: speed does not depend on the values. Rows differ in `engine` and `precision`. An engine that is missing,
or has no such model, gets a failed row with the reason. The models are in a temporary folder, for one run.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from merino_bench.fresh_process import run_separately
from merino_bench.harness import record
from merino_bench.harness.cases import Case
from merino_bench.harness.turns import TIME_OF_A_ROW, Engine, Measured
from merino_edge.benchmarking.engines import (
    GENERIC_BUILD,
    Peer,
    as_gpt2,
    decode_weight_bytes,
    given_gguf,
    missing,
    parse_engines,
    peers_of,
    shares_layers,
    stored_params,
)
from merino_edge.families.registry import read_geometry
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
PROCESS, MODELS = "merino_edge.benchmarking.engine_process", "merino_edge.benchmarking.engine_models"
TIMEOUT_S = 3600.0  # of making one model
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class GgufFile(NamedTuple):
    """A user's GGUF. `matrices`, `embedding`: types of most of the matrices, and of the embedding."""

    path: Path
    matrices: str
    embedding: str
    decode_weight_bytes: int


class Peers(NamedTuple):
    """`engines`: names as in `engines.ENGINES`; `folder`: where their models are made and kept; `source`: a GGUF whose
    weights the bundles have, which llama.cpp then runs in place of random ones."""

    engines: tuple[str, ...]
    folder: Path
    source: GgufFile | None = None


def check_peers(engines: str | None, source: Path | None) -> None:
    """Raise MerinoError for an unknown engine, and for a source that no engine would use, before a model is made."""
    if engines is None and source is not None:
        raise MerinoError("--peers-file goes with --peers: name the engines, such as --peers llama.cpp")
    if engines is not None:
        parse_engines(engines)
    if source is not None and not source.is_file():
        raise MerinoError(f"--peers-file {source} is no file: give a GGUF of the bundle's weights")


@contextmanager
def peers_beside(
    engines: str | None, folders: Sequence[str], seed: int, say: Callable[[str], None], source: Path | None = None
) -> Iterator[list[Engine]]:
    """Yield the engines for `bench_command`; none if `engines` is None.

    A bundle that cannot be read is left out, because the harness gives it a failed row. `source`: a GGUF with the
    bundles' weights, for llama.cpp. Raise MerinoError for an unknown engine or another source.
    """
    check_peers(engines, source)
    if engines is None:
        yield []
        return
    gguf = gguf_file(source) if source else None
    bundles = []
    for folder in folders:
        with suppress(MerinoError):
            bundles.append(load_bundle(folder, verify=False))
    with scratch_folder(Path(tempfile.gettempdir()) / "merino-peers") as scratch:
        yield peer_engines(Peers(parse_engines(engines), scratch, gguf), bundles, seed, say)


def peer_engines(
    peers: Peers, bundles: Iterable[Bundle], seed: int, say: Callable[[str], None] = lambda _: None
) -> list[Engine]:
    """Return an engine for each peer and geometry among the bundles; bundles of one model in several formats share it.

    Their models are made here, before anything is measured.
    """
    distinct: dict[str, Bundle] = {}
    for bundle in bundles:
        distinct.setdefault(geometry_key(bundle), bundle)
    return [
        peer_engine(peers, peer, bundle, seed, say)
        for bundle in distinct.values() for peer in peers_for(peers)
    ]  # fmt: skip


def peers_for(peers: Peers) -> list[Peer]:
    """Return the engines in their formats; an engine that runs the user's file has only the file's format."""
    all_peers, gguf = peers_of(peers.engines), peers.source
    if gguf is None:
        return all_peers
    with_file = given_gguf(gguf.matrices, gguf.embedding)
    others = [peer for peer in all_peers if peer.engine not in {runner.engine for runner in with_file}]
    return others + [peer for peer in with_file if peer.engine in peers.engines]


def peer_engine(peers: Peers, peer: Peer, bundle: Bundle, seed: int, say: Callable[[str], None]) -> Engine:
    identity = {
        "bundle": bundle.name, "precision": peer.shown_precision, "engine": peer.engine, "family": bundle.family,
        "architecture": bundle.architecture, "context": bundle.context, "weights": "random",
        "weights_source": "random, of equal geometry",
    }  # fmt: skip
    gguf = peers.source if peer.artifact == "given" else None
    if gguf:
        identity |= {"weights": "real", "weights_source": f"file {gguf.path.name}"}
    else:
        say(f"making the model of {bundle.name} for {peer.engine} {peer.shown_precision}")
    try:
        model = make_separately(peers, peer, bundle)
    except MerinoError as error:
        return Engine(identity, False, None, str(error))
    if gguf:
        # The bytes that llama.cpp reads of the file per token.
        sized = bundle._replace(decode_weight_bytes=gguf.decode_weight_bytes, kv_bytes=cache_bytes(peer, bundle))
    else:
        sized = as_read_by(peer, bundle)
    identity |= {"bundle_bytes": model["bytes"], "params": sized.params}

    def measure(case: Case, repetitions: int, _first: bool, timeout_s: float) -> Measured:
        return measure_peer_separately(
            peer, bundle, model["path"], case, repetitions=repetitions, seed=seed, timeout_s=timeout_s
        )

    def row(
        case: Case, processes: Sequence[Measured], _read_gb_s: float | None, _energy: dict[str, Any] | None,
        command: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Return a record without memory-bandwidth utilization and energy, which are measured for bundles only."""
        row = record.record_of(identity, sized, case, processes, command=command)
        row["notes"] = [*model["notes"], *row["notes"]]
        if any(note.startswith(GENERIC_BUILD) for note in row["notes"]):
            row["flags"] = [*row["flags"], GENERIC_BUILD]
        if case.untimed:
            row["prefill_ms"] = None  # of more ids than the row's prompt
            row["notes"].append(f"each repetition prefills all {case.decode_start} ids, so there is no prefill_ms")
        return row

    return Engine(identity, False, None, "", measure, row=row)


def as_read_by(peer: Peer, bundle: Bundle) -> Bundle:
    """Return the bundle with the bytes that this engine reads per token of its model, in llama.cpp a GPT-2."""
    geometry = read_geometry(bundle.family, bundle.architecture)
    operators = as_gpt2(geometry)[0].operators if peer.artifact == "gguf" else geometry.operators
    return bundle._replace(
        decode_weight_bytes=decode_weight_bytes(operators, peer.precision, peer.embedding),
        kv_bytes=cache_bytes(peer, bundle),
        params=bundle.params if shares_layers(operators) else stored_params(operators),
    )


def cache_bytes(peer: Peer, bundle: Bundle) -> int:
    """Return the bytes of keys and values at full context, whatever format the bundle's own cache has."""
    in_float32 = sum(4 * 2 * layer.heads * layer.head_size for layer in bundle.kv_layers) * bundle.context
    return int(in_float32 * peer.kv_share)


def make_separately(peers: Peers, peer: Peer, bundle: Bundle) -> dict[str, Any]:
    """Make the peer's model unless it exists. Return its `path`, `bytes`, and `notes` on how it differs from the
    bundle's. Raise MerinoError with the reason if it cannot be made."""
    reason = missing(peer)
    if reason:
        raise MerinoError(reason)
    folder = peers.folder / sha256(geometry_key(bundle).encode()).hexdigest()[:16]  # one per geometry
    request = {
        "folder": str(folder), "artifact": peer.artifact, "precision": peer.precision,
        "embedding": peer.embedding, "family": bundle.family, "architecture": bundle.architecture,
        "given": str(peers.source.path) if peers.source else None,
    }  # fmt: skip
    return run_separately(MODELS, json.dumps(request), TIMEOUT_S)


def measure_peer_separately(
    peer: Peer, bundle: Bundle, path: str, case: Case, repetitions: int, seed: int,
    timeout_s: float = TIMEOUT_S,
) -> Measured:  # fmt: skip
    """Measure a peer in a fresh process and return the worker's keys. Raise MerinoError if it fails."""
    if case.untimed and not case.steps:
        raise MerinoError("other engines' prefills are measured into an empty cache only: leave -d out")
    counts = thread_counts(bundle, case.threads)  # those of the bundle's row
    threads = counts.decode if case.steps else counts.prefill
    request = {
        "engine": peer.engine, "runner": peer.runner, "path": path, "precision": peer.precision, "threads": threads,
        "prompt": case.decode_start, "steps": case.steps, "repetitions": repetitions, "seed": seed,
        "vocab": bundle.vocab,
    }  # fmt: skip
    pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))  # no pool of an engine starts more than were requested
    return run_separately(PROCESS, json.dumps(request), timeout_s, pinned, TIME_OF_A_ROW)


def geometry_key(bundle: Bundle) -> str:
    return json.dumps([bundle.family, bundle.architecture], sort_keys=True)


def gguf_file(path: Path) -> GgufFile:
    """Read the types and sizes of a GGUF's matrices. Raise MerinoError for a file that is not a GGUF, is damaged, or
    has no embedding."""
    from merino_edge.families.gguf.file import open_gguf

    tensors = open_gguf(path).tensors
    matrices = [tensor for name, tensor in tensors.items() if len(tensor.shape) == 2 and name != EMBEDDING]
    kinds = Counter(tensor.kind.name for tensor in matrices)
    if EMBEDDING not in tensors or not kinds:
        raise MerinoError(f"{path} has no {EMBEDDING} and matrices: give a GGUF of a model that generates text")
    unread = tensors[EMBEDDING].nbytes if HEAD in tensors else 0  # except for one row
    read = sum(tensor.nbytes for tensor in tensors.values()) - unread
    return GgufFile(path, kinds.most_common(1)[0][0], tensors[EMBEDDING].kind.name, read)
