"""Makes the files of one peer in a process of its own, so that making them leaves nothing in the measured process.

`python -m merino_edge.benchmarking.peers.make REQUEST`: a JSON object in, one JSON object out. A file gets its name
when it is whole, so one that exists is kept.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merino_edge.benchmarking.peers.geometry import as_gpt2
from merino_edge.benchmarking.peers.make_checkpoint import convert_for_ctranslate2, write_checkpoint
from merino_edge.benchmarking.peers.make_gguf import write_gguf
from merino_edge.families.registry import read_geometry
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.errors import MerinoError


def make(request: Mapping[str, Any]) -> dict[str, Any]:
    """request: folder, artifact, precision, table, family, architecture.

    -> path and size of the files, and in what their model differs from the bundle's. Raises ValueError or MerinoError
    where the engine has no such model.
    """
    folder, geometry = Path(request["folder"]), read_geometry(request["family"], request["architecture"])
    notes: list[str] = []
    if request["artifact"] == "given":
        from merino_edge.families.gguf.checkpoint import geometry_of_gguf  # loads torch

        path = Path(request["given"])
        found = geometry_of_gguf(path)
        if found != geometry:
            raise ValueError(f"{path} is no file of the bundle's weights: {found.shape()}, here {geometry.shape()}")
    elif request["artifact"] == "gguf" and request["checkpoint"]:
        from merino_edge.families.gguf.write import write_model
        from merino_edge.families.hugging_face import read_checkpoint

        matrices, table, place = request["precision"], request["table"], Path(request["checkpoint"])
        path = folder / f"weights-{matrices}-{table}.gguf"
        read = read_checkpoint(place)
        if read.geometry != geometry:
            raise ValueError(f"{place} has other weights: {read.geometry.shape()}, the bundle {geometry.shape()}")
        written(path, lambda beside: write_model(beside, read.model, matrices, table))
    elif request["artifact"] == "gguf":
        gpt2, notes = as_gpt2(geometry)
        matrices, table = request["precision"], request["table"]
        path = folder / f"{matrices}-{table}.gguf"
        written(path, lambda beside: write_gguf(beside, gpt2, matrices, table))
    else:
        path = checkpoint = folder / "checkpoint"
        written(checkpoint, lambda beside: write_checkpoint(beside, geometry))
        if request["artifact"] == "ctranslate2":
            vocab, precision = geometry.vocab, request["precision"]
            path = folder / f"ctranslate2-{precision}"
            written(path, lambda beside: convert_for_ctranslate2(checkpoint, beside, vocab, precision))
    return {"path": str(path), "bytes": size_of(path), "notes": notes}


def written(path: Path, write: Callable[[Path], None]) -> None:
    if path.exists():
        return
    with scratch_folder(path) as scratch:
        write(scratch / path.name)
        (scratch / path.name).rename(path)


def size_of(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*")) if path.is_dir() else path.stat().st_size


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What `make` returns, or why it could not, as `error`."""
    try:
        return make(request)
    except (MerinoError, ValueError, OSError, ImportError, RuntimeError) as error:
        return {"error": f"its model could not be made: {error}"}


def main() -> int:
    result = answer(json.loads(sys.argv[1]))
    print(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
