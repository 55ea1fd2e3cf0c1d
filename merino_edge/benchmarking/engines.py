"""List the engines of `bench --peers`, and make the files of one engine in a separate process, so that this leaves
nothing in the measured process.

`python -m merino_edge.benchmarking.engines REQUEST`: a JSON object in, one JSON object out. A file gets its name when
it is complete, so one that exists is kept. Weights are random; llama.cpp runs a GPT-2 of equal size. openvino-genai
runs a GGUF that is given, and onnxruntime-genai runs the bundle itself.
"""

import json
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.bundles.other_programs import GENAI, LIBRARY
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import Operator, params
from merino_edge.families.registry import read_geometry
from merino_edge.storage.atomic import cache_folder, scratch_folder
from merino_runtime.bundle.fit import library_path
from merino_runtime.errors import MerinoError


class Peer(NamedTuple):
    """An engine at one weight format. `embedding`: the format of the embedding, which is the LM head too."""

    engine: str
    precision: str  # as the engine calls it
    embedding: str
    runner: str  # key of `engine_process.OPENERS`
    needs: tuple[tuple[str, str], ...]  # (module to import, package to install)
    file: Path | None = None  # the user's GGUF or bundle, which is run instead of a model of random weights

    @property
    def shown_precision(self) -> str:
        return self.precision if self.embedding == self.precision else f"{self.precision}, table {self.embedding}"


TORCH = (("torch", "torch"), ("transformers", "transformers"))
LLAMA = (("xllamacpp", "xllamacpp"), ("gguf", "gguf"))
WITH_Q8_0_CACHE = "llama.cpp-q8_0-cache"
OF_FILES, OF_BUNDLES = ("llama_cpp", "openvino"), "onnxruntime_genai"  # runners of the user's GGUF, and of the bundles
NEEDS_FILE = "openvino-genai"
UNKNOWN = "as given"  # format of an engine that runs what it is given, until that is known
GENERIC_BUILD = "generic-build"  # flag of a row of llama.cpp: the wheel is built for AVX2, whatever the machine has
PEERS = (
    Peer("transformers", "fp32", "fp32", "transformers", TORCH),
    Peer("ctranslate2", "int8", "int8", "ctranslate2", (*TORCH, ("ctranslate2", "ctranslate2"))),
    Peer("llama.cpp", "F32", "F32", "llama_cpp", LLAMA),
    Peer("llama.cpp", "Q8_0", "Q8_0", "llama_cpp", LLAMA),
    Peer("llama.cpp", "Q4_0", "Q8_0", "llama_cpp", LLAMA),
    Peer("llama.cpp", "Q4_0", "Q4_0", "llama_cpp", LLAMA),
    Peer(WITH_Q8_0_CACHE, "Q8_0", "Q8_0", "llama_cpp", LLAMA),
    Peer(WITH_Q8_0_CACHE, "Q4_0", "Q8_0", "llama_cpp", LLAMA),
    Peer(NEEDS_FILE, UNKNOWN, UNKNOWN, "openvino", (("openvino_genai", "openvino-genai"),)),
    Peer("onnxruntime-genai", UNKNOWN, UNKNOWN, OF_BUNDLES, ((OF_BUNDLES, "onnxruntime-genai"),)),
)
ENGINES = tuple(dict.fromkeys(peer.engine for peer in PEERS))
EMBEDDING = "token_embd.weight"
SPARE_SLOTS = 64  # beyond the context: llama.cpp requires room for the token that is chosen last


def parse_engines(text: str) -> tuple[tuple[str, ...], Path | None]:
    """Parse `all`, or names with commas between them -> the engines, and the GGUF among them, which llama.cpp and
    openvino-genai run. Without one, `all` leaves out openvino-genai, which runs nothing else. Raise MerinoError for a
    name that is not an engine's."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    paths = [Path(word) for word in words if word.endswith(".gguf")]
    names = [word for word in words if not word.endswith(".gguf")] or ["llama.cpp"] * len(paths)
    if paths and (len(paths) > 1 or not paths[0].is_file()):
        raise MerinoError(f"--peers {text} must name one file: give a GGUF of the bundle's weights")
    unknown = sorted(set(names) - {*ENGINES, "all"})
    if unknown or not names:
        raise MerinoError(
            f"--peers {text!r} names {', '.join(unknown) or 'no engine'}: known are {', '.join(ENGINES)}, all, a GGUF"
        )
    if "all" in names:
        names = [engine for engine in ENGINES if paths or engine != NEEDS_FILE]
    return tuple(dict.fromkeys(names)), (paths[0] if paths else None)


def peers_of(engines: Sequence[str], file: Path | None = None) -> list[Peer]:
    """Return the engines in their formats. llama.cpp and openvino-genai run `file`, a GGUF, in its format.

    Raise MerinoError for a file that is not a GGUF, is damaged, or has no embedding.
    """
    peers = [peer for peer in PEERS if peer.engine in engines]
    if file is None:
        return peers
    from merino_edge.families.gguf.file import open_gguf

    tensors = open_gguf(file).tensors
    matrices = [tensor for name, tensor in tensors.items() if len(tensor.shape) == 2 and name != EMBEDDING]
    kinds = Counter(tensor.kind.name for tensor in matrices)
    if EMBEDDING not in tensors or not kinds:
        raise MerinoError(f"{file} has no {EMBEDDING} and matrices: give a GGUF of a model that generates text")
    matrix_kind, embedding_kind = kinds.most_common(1)[0][0], tensors[EMBEDDING].kind.name
    given = {
        peer.engine: peer._replace(precision=matrix_kind, embedding=embedding_kind, file=file)
        for peer in peers if peer.runner in OF_FILES
    }  # fmt: skip
    return [peer for peer in peers if peer.engine not in given] + list(given.values())


def native_build() -> Path | None:
    """Return the folder of llama-cpp-python's package that `make peers-native` builds for this machine; None if it was
    not built."""
    folder = cache_folder() / "peers-native" / "llama_cpp"
    return folder if (folder / "llama_cpp.py").is_file() else None


def missing(peer: Peer) -> str | None:
    """Return why the engine cannot run here, with the command that installs it, or None if it can."""
    if peer.runner == "llama_cpp" and native_build():
        return None
    lacking = [package for module, package in peer.needs if find_spec(module) is None]
    if not lacking:
        return None
    return f"{peer.engine} is not installed: python -m pip install {' '.join(lacking)}"


def matrix_weights(operators: Sequence[Operator], *kinds: str) -> int:
    """Return the weights of matrices of these kinds that a decode step reads; shared ones count at each use."""
    return sum(op.matrix for op in operators if op.kind in kinds)


def as_gpt2(geometry: Geometry) -> tuple[Geometry, list[str]]:
    """Return the GPT-2 with the same layers, and how it differs. Raise ValueError if there is none."""
    layers, operators = geometry.layer_shapes, geometry.operators
    if len(set(layers)) != 1:
        raise ValueError("llama.cpp's gpt2 has layers of one width and one FFN width, this model's differ")
    if any(op.kind == "linear" and not op.own for op in operators):
        raise ValueError("llama.cpp's gpt2 has no layers with shared weights, this model has")
    width, ffn_width, heads = layers[0]
    sizes = {"width": width, "layers": len(layers), "heads": heads, "ffn_width": ffn_width, "vocab": geometry.vocab}
    made = read_geometry("gpt2", {**sizes, "context": geometry.context, "norm_eps": 1e-5, "activation": "gelu_new"})
    projected = 0 if geometry.embed_width == width else 2 * width * geometry.embed_width
    if matrix_weights(operators, "linear") - projected != matrix_weights(made.operators, "linear"):
        raise ValueError("llama.cpp's gpt2 has an FFN of two matrices and as many KV heads as query heads only")
    notes = [f"gpt2 of {made.shape()}, vocabulary {made.vocab}"]
    if projected:
        read, own = (matrix_weights(ops, "linear", "head") for ops in (made.operators, operators))
        notes.append(
            f"its embedding is {width} wide, the bundle's {geometry.embed_width} with a projection before and behind:"
            f" {read - own:,} more weights are read per token ({4 * (read - own) / 1e6:.1f} MB in float32)"
        )
    return made, notes


def make(request: Mapping[str, Any]) -> dict[str, Any]:
    """Make the engine's files. Return their path and size, the parameters, and how their model differs from the
    bundle's.

    request: folder, runner, precision, embedding, file, family, architecture. Raise ValueError or MerinoError if the
    engine has no such model.
    """
    from merino_edge.families.hugging_face import random_model  # loads torch

    folder, geometry = Path(request["folder"]), read_geometry(request["family"], request["architecture"])
    notes: list[str] = []
    if request["runner"] == OF_BUNDLES:
        path = folder / "bundle"
        written(path, lambda beside: copy_for_genai(Path(request["file"]), beside))
    elif request["file"]:
        from merino_edge.families.gguf.checkpoint import geometry_of_gguf

        path = Path(request["file"])
        stored = geometry_of_gguf(path)
        if stored != geometry:
            raise ValueError(f"{path} is no file of the bundle's weights: {stored.shape()}, here {geometry.shape()}")
    elif request["runner"] == "openvino":
        raise ValueError("openvino-genai runs a GGUF of the bundle's weights: name the file among --peers")
    elif request["runner"] == "llama_cpp":
        from merino_edge.families.gguf.write import write_gpt2

        geometry, notes = as_gpt2(geometry)
        longer = read_geometry("gpt2", {**geometry.model_dump(), "context": geometry.context + SPARE_SLOTS})
        formats = request["precision"], request["embedding"]
        path = folder / f"{'-'.join(formats)}.gguf"
        written(path, lambda beside: write_gpt2(beside, random_model(longer), *formats))
    else:
        path = checkpoint = folder / "checkpoint"
        written(checkpoint, lambda beside: random_model(geometry).save_pretrained(beside))
        if request["runner"] == "ctranslate2":
            precision = request["precision"]
            path = folder / f"ctranslate2-{precision}"
            written(path, lambda beside: convert_for_ctranslate2(checkpoint, beside, geometry.vocab, precision))
    size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]))
    return {"path": str(path), "bytes": size, "params": params(geometry.operators), "notes": notes}


def written(path: Path, write: Callable[[Path], None]) -> None:
    if path.exists():
        return
    with scratch_folder(path) as scratch:
        write(scratch / path.name)
        (scratch / path.name).rename(path)


def copy_for_genai(bundle: Path, path: Path) -> None:
    """Copy a bundle and this machine's kernels. Raise ValueError if it has no description for onnxruntime-genai."""
    if not (bundle / GENAI).is_file():
        raise ValueError(f"{bundle} has no {GENAI}: export a fused graph with --kv fp32")
    shutil.copytree(bundle, path)
    shutil.copy(library_path(platform.machine()), path / LIBRARY)


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
