"""Make the files of one engine in a separate process, so that this leaves nothing in the measured process.

`python -m merino_edge.benchmarking.engine_models REQUEST`: a JSON object in, one JSON object out. A file gets its name
when it is complete, so one that exists is kept. Weights are random."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merino_edge.benchmarking.engines import as_gpt2
from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import read_geometry
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.errors import MerinoError


def make(request: Mapping[str, Any]) -> dict[str, Any]:
    """Make the engine's files. Return their path and size, and how their model differs from the bundle's.

    request: folder, artifact, precision, embedding, family, architecture. Raise ValueError or MerinoError if the engine
    has no such model.
    """
    folder, geometry = Path(request["folder"]), read_geometry(request["family"], request["architecture"])
    notes: list[str] = []
    if request["artifact"] == "given":
        from merino_edge.families.gguf.checkpoint import geometry_of_gguf  # loads torch

        path = Path(request["given"])
        stored = geometry_of_gguf(path)
        if stored != geometry:
            raise ValueError(f"{path} is no file of the bundle's weights: {stored.shape()}, here {geometry.shape()}")
    elif request["artifact"] == "gguf":
        gpt2, notes = as_gpt2(geometry)
        matrices, embedding = request["precision"], request["embedding"]
        path = folder / f"{matrices}-{embedding}.gguf"
        written(path, lambda beside: write_gguf(beside, gpt2, matrices, embedding))
    else:
        path = checkpoint = folder / "checkpoint"
        written(checkpoint, lambda beside: write_checkpoint(beside, geometry))
        if request["artifact"] == "ctranslate2":
            vocab, precision = geometry.vocab, request["precision"]
            path = folder / f"ctranslate2-{precision}"
            written(path, lambda beside: convert_for_ctranslate2(checkpoint, beside, vocab, precision))
    files = path.rglob("*") if path.is_dir() else [path]
    return {"path": str(path), "bytes": sum(file.stat().st_size for file in files), "notes": notes}


def written(path: Path, write: Callable[[Path], None]) -> None:
    if path.exists():
        return
    with scratch_folder(path) as scratch:
        write(scratch / path.name)
        (scratch / path.name).rename(path)


def write_checkpoint(path: Path, geometry: Geometry) -> None:
    from merino_edge.families.hugging_face import random_model  # loads torch

    random_model(geometry).save_pretrained(path)


def convert_for_ctranslate2(checkpoint: Path, path: Path, vocab: int, precision: str) -> None:
    """Convert with CTranslate2's own converter, with made-up tokens t0, t1, ... instead of a tokenizer.

    Raise ValueError for a model that it does not know, and for a vocabulary that it would pad.
    """
    from ctranslate2.converters import TransformersConverter

    import merino_edge.families.hugging_face  # noqa: F401 - registers what transformers does not have

    class Vocabulary:
        bos_token = eos_token = f"t{min(2, vocab - 1)}"
        unk_token = f"t{min(3, vocab - 1)}"

        def get_vocab(self) -> dict[str, int]:
            return {f"t{index}": index for index in range(vocab)}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Vocabulary:
            return Vocabulary()

    if vocab % 8:
        raise ValueError(f"CTranslate2's converter pads a vocabulary to a multiple of 8, this one has {vocab} entries")
    Converter(str(checkpoint)).convert(str(path), quantization=precision)


SPARE_SLOTS = 64  # beyond the context: llama.cpp requires room for the token that is chosen last


def write_gguf(path: Path, geometry: Geometry, matrices: str, embedding: str) -> None:
    """Write a GPT-2 of random weights. `geometry`: from `as_gpt2`; `matrices`, `embedding`: formats such as F32, Q8_0,
    Q4_0."""
    from merino_edge.families.gguf.write import write_gpt2
    from merino_edge.families.hugging_face import random_model

    longer = read_geometry("gpt2", {**geometry.model_dump(), "context": geometry.context + SPARE_SLOTS})
    write_gpt2(path, random_model(longer), matrices, embedding)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of `make`, or as `error` the reason why there is none."""
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
