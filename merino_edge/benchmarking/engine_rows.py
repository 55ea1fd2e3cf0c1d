"""`bench --peers`: other engines beside bundles, in interleaved runs; their rows have the keys of a bundle's rows.

Each engine runs in a fresh process, with the same prompt ids, threads and lengths, on a model of equal geometry with
random weights: speed does not depend on the values. Rows differ in `engine` and `precision`. An engine that is missing,
or has no such model, gives a failed row with the reason. The models are in a temporary folder, for one run."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from merino_bench.fresh_process import run_separately
from merino_bench.harness import record
from merino_bench.harness.cases import Case
from merino_bench.harness.turns import TIME_OF_A_ROW, Engine, Measured, never
from merino_edge.benchmarking.engines import (
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
from merino_edge.benchmarking.llama_cpp_native import GENERIC_BUILD
from merino_edge.families.checkpoint import check_checkpoint
from merino_edge.families.registry import read_geometry
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
PROCESS, MODELS = "merino_edge.benchmarking.engine_process", "merino_edge.benchmarking.engine_models"
TIMEOUT_S = 3600.0  # of making one model
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class GivenFile(NamedTuple):
    """`matrices`, `embedding`: types of most of the matrices, and of the embedding."""

    path: Path
    matrices: str
    embedding: str
    decode_weight_bytes: int


class Peers(NamedTuple):
    """`engines`: names as in `engines.ENGINES`; `folder`: where their models are made and kept; `source`: a GGUF whose
    weights the bundles have, which llama.cpp then runs in place of random ones; `checkpoint`: such a Hugging Face
    folder, which is made into GGUFs of the same weights."""

    engines: tuple[str, ...]
    folder: Path
    source: GivenFile | None = None
    checkpoint: Path | None = None


def check_peers(engines: str | None, source: Path | None) -> None:
    """Raises MerinoError for an unknown engine, and for a source that no engine would use, before a model is made."""
    if engines is None and source is not None:
        raise MerinoError("--peers-file goes with --peers: name the engines, such as --peers llama.cpp")
    if engines is not None:
        parse_engines(engines)
    if source is not None and not source.exists():
        raise MerinoError(f"--peers-file {source} does not exist: give a GGUF or a Hugging Face folder")


@contextmanager
def peers_beside(
    engines: str | None, folders: Sequence[str], seed: int, say: Callable[[str], None], source: Path | None = None
) -> Iterator[list[Engine]]:
    """The engines for `bench_command`; none where `engines` is None.

    A bundle that cannot be read is left out: the harness gives it a failed row already.
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
        yield peer_engines(Peers(names, made, given, checkpoint), bundles, seed, say)


class Made(NamedTuple):
    """A peer's model on disk; `notes`: how it differs from the bundle's."""

    path: str
    bytes: int
    notes: list[str]


def peer_engines(
    peers: Peers, bundles: Iterable[Bundle], seed: int, say: Callable[[str], None] = lambda _: None
) -> list[Engine]:
    """One for each engine and geometry among the bundles; bundles of one model in several formats share it.

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
    """The engines in their formats; an engine that runs the given file has only the file's format."""
    every, given = peers_of(peers.engines), peers.source
    if given is None:
        return every
    files = given_gguf(given.matrices, given.embedding)
    others = [peer for peer in every if peer.engine not in {each.engine for each in files}]
    return others + [each for each in files if each.engine in peers.engines]


def peer_engine(peers: Peers, peer: Peer, bundle: Bundle, seed: int, say: Callable[[str], None]) -> Engine:
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
        made = make_separately(peers, peer, bundle)
    except MerinoError as error:
        return Engine(identity, False, None, str(error), never, never)
    seen = as_stored(given, peer, bundle) if given else as_read_by(peer, bundle, gpt2=peers.checkpoint is None)
    identity |= {"bundle_bytes": made.bytes, "params": seen.params}

    def measure(case: Case, repetitions: int, _first: bool, timeout_s: float) -> Measured:
        return measure_peer_separately(peers, peer, bundle, made.path, case, repetitions, seed, timeout_s)

    return Engine(identity, False, None, "", measure, partial(peer_row, identity, seen, made.notes))


def peer_row(
    identity: dict[str, Any], seen: Bundle, notes: Sequence[str], case: Case, processes: Sequence[Measured],
    _read_gb_s: float | None, _energy: dict[str, Any] | None, command: str,
) -> dict[str, Any]:  # fmt: skip
    """Without memory-bandwidth utilization and energy, which are measured for bundles only."""
    row = record.record_of(identity, seen, case, processes, command=command)
    row["notes"] = [*notes, *row["notes"]]
    if any(note.startswith(GENERIC_BUILD) for note in row["notes"]):
        row["flags"] = [*row["flags"], GENERIC_BUILD]
    if case.untimed:
        row["prefill_ms"] = None  # of more ids than the row's prompt
        row["notes"].append(f"each repetition prefills all {case.decode_start} ids, so there is no prefill_ms")
    return row


def as_read_by(peer: Peer, bundle: Bundle, gpt2: bool = True) -> Bundle:
    """The bundle with the bytes that this engine reads per token. `gpt2`: of the GPT-2 that llama.cpp runs instead."""
    geometry = read_geometry(bundle.family, bundle.architecture)
    operators = as_gpt2(geometry)[0].operators if peer.artifact == "gguf" and gpt2 else geometry.operators
    return bundle._replace(
        decode_weight_bytes=decode_weight_bytes(operators, peer.precision, peer.embedding),
        kv_bytes=cache_bytes(peer, bundle),
        params=bundle.params if shares_layers(operators) else stored_params(operators),
    )


def as_stored(given: GivenFile, peer: Peer, bundle: Bundle) -> Bundle:
    """The bundle with the bytes that llama.cpp reads of the file per token."""
    return bundle._replace(decode_weight_bytes=given.decode_weight_bytes, kv_bytes=cache_bytes(peer, bundle))


def cache_bytes(peer: Peer, bundle: Bundle) -> int:
    """Bytes of keys and values at full context, whatever format the bundle's own cache has."""
    in_float32 = sum(4 * 2 * layer.heads * layer.head_size for layer in bundle.kv_layers) * bundle.context
    return int(in_float32 * peer.kv_share)


def make_separately(peers: Peers, peer: Peer, bundle: Bundle) -> Made:
    """The peer's model, made unless it exists. Raises MerinoError with the reason where it cannot be made."""
    reason = missing(peer)
    if reason:
        raise MerinoError(reason)
    request = {
        "folder": str(peers.folder / folder_name(bundle)), "artifact": peer.artifact, "precision": peer.precision,
        "embedding": peer.embedding, "family": bundle.family, "architecture": bundle.architecture,
        "given": str(peers.source.path) if peers.source else None,
        "checkpoint": str(peers.checkpoint) if peers.checkpoint else None,
    }  # fmt: skip
    return Made(**run_separately(MODELS, json.dumps(request), TIMEOUT_S))


def measure_peer_separately(
    peers: Peers, peer: Peer, bundle: Bundle, path: str, case: Case, repetitions: int, seed: int,
    timeout_s: float = TIMEOUT_S,
) -> Measured:  # fmt: skip
    """One peer measured in a fresh process; the keys are the harness' worker's. Raises MerinoError where it fails."""
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
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(peers.folder / "inductor")}
    return run_separately(PROCESS, json.dumps(request), timeout_s, {**pinned, **kept}, TIME_OF_A_ROW)


def geometry_key(bundle: Bundle) -> str:
    return json.dumps([bundle.family, bundle.architecture], sort_keys=True)


def folder_name(bundle: Bundle) -> str:
    """One folder per geometry."""
    return sha256(geometry_key(bundle).encode()).hexdigest()[:16]


def given_file(path: Path) -> GivenFile:
    """Raises MerinoError for a file that is no GGUF, is damaged, or has no embedding."""
    from merino_edge.families.gguf.file import open_gguf

    tensors = open_gguf(path).tensors
    kinds = Counter(place.kind.name for name, place in tensors.items() if len(place.shape) == 2 and name != EMBEDDING)
    if EMBEDDING not in tensors or not kinds:
        raise MerinoError(f"{path} has no {EMBEDDING} and matrices: give a GGUF of a model that generates text")
    unread = tensors[EMBEDDING].nbytes if HEAD in tensors else 0  # but for one row
    read = sum(place.nbytes for place in tensors.values()) - unread
    return GivenFile(path, kinds.most_common(1)[0][0], tensors[EMBEDDING].kind.name, read)
