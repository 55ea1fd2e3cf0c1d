"""Other engines as entrants of the benchmark: they take turns with our bundles, and their rows have the keys of ours.

`engine` and `precision` tell the rows apart. An engine that is missing, or has no such model, gives a failed row with
the reason.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from merino_bench.fresh_process import run_apart
from merino_bench.harness import record
from merino_bench.harness.cases import Case
from merino_bench.harness.turns import TIME_OF_A_ROW, Entrant, Measured, never
from merino_edge.benchmarking.peers.engines import Peer, given_gguf, missing, peers_of
from merino_edge.benchmarking.peers.geometry import as_gpt2, decode_weight_bytes, shares_layers, stored_params
from merino_edge.benchmarking.peers.given import GivenFile
from merino_edge.families.registry import read_geometry
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError

TIMEOUT_S = 3600.0  # of making one model
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Peers(NamedTuple):
    """`engines`: names as in `engines.ENGINES`; `folder`: where their models are made and kept; `source`: a GGUF whose
    weights the bundles have, which llama.cpp then runs in place of random ones; `checkpoint`: such a Hugging Face
    folder, which is made into GGUFs of the same weights."""

    engines: tuple[str, ...]
    folder: Path
    source: GivenFile | None = None
    checkpoint: Path | None = None


class Made(NamedTuple):
    """A peer's model on disk; `notes`: in what it differs from the bundle's."""

    path: str
    bytes: int
    notes: list[str]


def peer_entrants(
    peers: Peers, bundles: Iterable[Bundle], seed: int, say: Callable[[str], None] = lambda _: None
) -> list[Entrant]:
    """An entrant per engine and geometry among the bundles; bundles of one model in several formats share it.

    Their models are made here, before anything is measured.
    """
    distinct: dict[str, Bundle] = {}
    for bundle in bundles:
        distinct.setdefault(geometry_key(bundle), bundle)
    return [
        peer_entrant(peers, peer, bundle, seed, say)
        for bundle in distinct.values() for peer in peers_for(peers)
    ]  # fmt: skip


def peers_for(peers: Peers) -> list[Peer]:
    """Of several formats of one engine only that of the given file, where there is one for it."""
    found, given = peers_of(peers.engines), peers.source
    if given is None:
        return found
    files = given_gguf(given.matrices, given.table)
    others = [peer for peer in found if peer.engine not in {each.engine for each in files}]
    return others + [each for each in files if each.engine in peers.engines]


def peer_entrant(peers: Peers, peer: Peer, bundle: Bundle, seed: int, say: Callable[[str], None]) -> Entrant:
    identity = {
        "bundle": bundle.name, "precision": peer.shown_precision, "engine": peer.engine, "family": bundle.family,
        "architecture": bundle.architecture, "context": bundle.context, "weights": "random",
        "weights_source": "random, of equal geometry",
    }  # fmt: skip
    given = peers.source if peer.artifact == "given" else None
    if given:
        identity |= {"weights": "real", "weights_source": f"file {given.path.name}"}
    else:
        if peers.checkpoint and peer.artifact == "gguf":
            identity |= {"weights": "trained", "weights_source": f"checkpoint {peers.checkpoint.name}"}
        say(f"making the model of {bundle.name} for {peer.engine} {peer.shown_precision}")
    try:
        made = make_apart(peers, peer, bundle)
    except MerinoError as error:
        return Entrant(identity, False, None, str(error), never, never)
    seen = as_stored(given, peer, bundle) if given else as_read_by(peer, bundle, gpt2=peers.checkpoint is None)
    identity |= {"bundle_bytes": made.bytes, "params": seen.params}

    def measure(case: Case, repetitions: int, _first: bool, timeout_s: float) -> Measured:
        return measure_peer_apart(peers, peer, bundle, made.path, case, repetitions, seed, timeout_s)

    return Entrant(identity, False, None, "", measure, partial(peer_row, identity, seen, made.notes))


def peer_row(
    identity: dict[str, Any], seen: Bundle, notes: Sequence[str], case: Case, processes: Sequence[Measured],
    _read_gb_s: float | None, _energy: dict[str, Any] | None, command: str,
) -> dict[str, Any]:  # fmt: skip
    """Without a share of the ceiling and without energy: both are of our own engine."""
    row = record.record_of(identity, seen, case, processes, command=command)
    row["notes"] = [*notes, *row["notes"]]
    if case.untimed:
        row["prefill_ms"] = None  # of more ids than the row's prompt
        row["notes"].append(f"each repetition prefills all {case.decode_start} ids, so there is no prefill_ms")
    return row


def as_read_by(peer: Peer, bundle: Bundle, gpt2: bool = True) -> Bundle:
    """The bundle with the bytes that this engine reads per token in place of ours. `gpt2`: llama.cpp's stand-in."""
    geometry = read_geometry(bundle.family, bundle.architecture)
    operators = as_gpt2(geometry)[0].operators if peer.artifact == "gguf" and gpt2 else geometry.operators
    return bundle._replace(
        decode_weight_bytes=decode_weight_bytes(operators, peer.precision, peer.table),
        kv_bytes=cache_bytes(peer, bundle),
        params=bundle.params if shares_layers(operators) else stored_params(operators),
    )


def as_stored(given: GivenFile, peer: Peer, bundle: Bundle) -> Bundle:
    """The bundle with the bytes that llama.cpp reads of the file per token."""
    return bundle._replace(decode_weight_bytes=given.decode_weight_bytes, kv_bytes=cache_bytes(peer, bundle))


def cache_bytes(peer: Peer, bundle: Bundle) -> int:
    """Of keys and values at full context, whatever format the bundle's own cache has."""
    in_float32 = sum(4 * 2 * layer.heads * layer.head_size for layer in bundle.kv_layers) * bundle.context
    return int(in_float32 * peer.kv_share)


def make_apart(peers: Peers, peer: Peer, bundle: Bundle) -> Made:
    """The peer's model, made unless it exists. Raises MerinoError with the reason where it cannot be made."""
    reason = missing(peer)
    if reason:
        raise MerinoError(reason)
    request = {
        "folder": str(peers.folder / folder_name(bundle)), "artifact": peer.artifact, "precision": peer.precision,
        "table": peer.table, "family": bundle.family, "architecture": bundle.architecture,
        "given": str(peers.source.path) if peers.source else None,
        "checkpoint": str(peers.checkpoint) if peers.checkpoint else None,
    }  # fmt: skip
    return Made(**run_apart("merino_edge.benchmarking.peers.make", json.dumps(request), TIMEOUT_S))


def measure_peer_apart(
    peers: Peers, peer: Peer, bundle: Bundle, path: str, case: Case, repetitions: int, seed: int,
    timeout_s: float = TIMEOUT_S,
) -> Measured:  # fmt: skip
    """One peer measured in a fresh process; the keys are our own worker's. Raises MerinoError where it fails."""
    if case.untimed and not case.steps:
        raise MerinoError("other engines' prefills are measured into an empty cache only: leave -d out")
    counts = thread_counts(bundle, case.threads)  # those of our own row
    threads = counts.decode if case.steps else counts.prefill
    request = {
        "engine": peer.engine, "runner": peer.runner, "path": path, "precision": peer.precision, "threads": threads,
        "prompt": case.decode_start, "steps": case.steps, "repetitions": repetitions, "seed": seed,
        "vocab": bundle.vocab,
    }  # fmt: skip
    pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))  # no pool of an engine starts more than were asked for
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(peers.folder / "inductor")}
    variables = {**pinned, **kept}
    return run_apart("merino_edge.benchmarking.peers.child", json.dumps(request), timeout_s, variables, TIME_OF_A_ROW)


def geometry_key(bundle: Bundle) -> str:
    return json.dumps([bundle.family, bundle.architecture], sort_keys=True)


def folder_name(bundle: Bundle) -> str:
    """One folder per geometry."""
    return sha256(geometry_key(bundle).encode()).hexdigest()[:16]
