"""List the engines of `bench --peers`: the packages that each needs, the engines behind a name on the command line, and
the bytes of a model that each reads per token. llama.cpp runs a GPT-2 of equal size instead of a model.

Counts are sums over the operators of the geometry, so they hold for every family.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import Operator
from merino_edge.families.registry import read_geometry
from merino_edge.storage.atomic import cache_folder
from merino_runtime.errors import MerinoError


class Peer(NamedTuple):
    """An engine at one weight format. `embedding`: the format of the embedding, which is the LM head too."""

    engine: str
    precision: str  # as the engine calls it
    embedding: str
    artifact: str  # made for it once: `checkpoint`, `ctranslate2` or `gguf`
    runner: str  # key of `engine_process.OPENERS`
    needs: tuple[tuple[str, str], ...]  # (module to import, package to install)
    kv_share: float = 1.0  # bytes of its KV cache over those of a float32 cache

    @property
    def shown_precision(self) -> str:
        return self.precision if self.embedding == self.precision else f"{self.precision}, table {self.embedding}"


TORCH = (("torch", "torch"), ("transformers", "transformers"))
WITH_Q8_0_CACHE = "llama.cpp-q8_0-cache"
GENERIC_BUILD = "generic-build"  # flag of a row of llama.cpp: the wheel is built for AVX2, whatever the machine has
LLAMA = (("xllamacpp", "xllamacpp"), ("gguf", "gguf"))


# Over the bytes of a float32 cache. llama.cpp's default is float16; Q8_0 has a float16 scale for each 32 values.
LLAMA_KV_SHARES = {"llama.cpp": 16 / 32, WITH_Q8_0_CACHE: 8.5 / 32}


def llama_cpp(precision: str, embedding: str, engine: str = "llama.cpp", artifact: str = "gguf") -> Peer:
    return Peer(engine, precision, embedding, artifact, "llama_cpp", LLAMA, LLAMA_KV_SHARES[engine])


PEERS = (
    Peer("transformers", "fp32", "fp32", "checkpoint", "transformers", TORCH),
    Peer("ctranslate2", "int8", "int8", "ctranslate2", "ctranslate2", (*TORCH, ("ctranslate2", "ctranslate2"))),
    llama_cpp("F32", "F32"),
    llama_cpp("Q8_0", "Q8_0"),
    llama_cpp("Q4_0", "Q8_0"),
    llama_cpp("Q4_0", "Q4_0"),
    llama_cpp("Q8_0", "Q8_0", WITH_Q8_0_CACHE),
    llama_cpp("Q4_0", "Q8_0", WITH_Q8_0_CACHE),
)
ENGINES = tuple(dict.fromkeys(peer.engine for peer in PEERS))


def given_gguf(precision: str, embedding: str) -> list[Peer]:
    """Return llama.cpp on the user's file, with either cache, for the types of its matrices and of its embedding."""
    return [llama_cpp(precision, embedding, engine, "given") for engine in LLAMA_KV_SHARES]


def parse_engines(text: str) -> tuple[str, ...]:
    """Parse `all`, or names with commas between them. Raise MerinoError for a name that is not an engine's."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    unknown = sorted(set(names) - {*ENGINES, "all"})
    if unknown or not names:
        raise MerinoError(
            f"--peers {text!r} names {', '.join(unknown) or 'no engine'}: known are {', '.join(ENGINES)}, and all"
        )
    return ENGINES if "all" in names else tuple(dict.fromkeys(names))


def peers_of(engines: Sequence[str]) -> list[Peer]:
    return [peer for peer in PEERS if peer.engine in engines]


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


BITS = {  # per weight, the scales included; llama.cpp's blocks of 32 have a float16 scale
    "fp32": 32.0, "F32": 32.0, "int8": 8.0, "Q8_0": 8.5, "Q4_0": 4.5,
}  # fmt: skip


def elements(operators: Sequence[Operator], kind: str) -> int:
    """Return the number of elements that a decode step reads of matrices (`linear`; shared ones count at each use), or
    of the `head`."""
    return sum(op.matrix for op in operators if op.kind == kind)


def shares_layers(operators: Sequence[Operator]) -> bool:
    """Return whether some matrices are used repeatedly."""
    return any(op.kind == "linear" and not op.own for op in operators)


def decode_weight_bytes(operators: Sequence[Operator], precision: str, embedding: str) -> int:
    """Return the bytes of matrices that one decode step reads; vectors are below a thousandth and left out."""
    return round((elements(operators, "linear") * BITS[precision] + elements(operators, "head") * BITS[embedding]) / 8)


def stored_params(operators: Sequence[Operator]) -> int:
    """Return the parameters of matrices and embedding, without vectors, of a model without shared layers."""
    return elements(operators, "linear") + elements(operators, "head")


def as_gpt2(geometry: Geometry) -> tuple[Geometry, list[str]]:
    """Return the GPT-2 with the same layers, and how it differs. Raise ValueError if there is none."""
    layers, operators = geometry.layer_shapes, geometry.operators
    if len(set(layers)) != 1:
        raise ValueError("llama.cpp's gpt2 has layers of one width and one FFN width, this model's differ")
    if shares_layers(operators):
        raise ValueError("llama.cpp's gpt2 has no layers with shared weights, this model has")
    width, ffn_width, heads = layers[0]
    sizes = {"width": width, "layers": len(layers), "heads": heads, "ffn_width": ffn_width, "vocab": geometry.vocab}
    made = read_geometry("gpt2", {**sizes, "context": geometry.context, "norm_eps": 1e-5, "activation": "gelu_new"})
    projected = 0 if geometry.embed_width == width else 2 * width * geometry.embed_width
    if elements(operators, "linear") - projected != elements(made.operators, "linear"):
        raise ValueError("llama.cpp's gpt2 has an FFN of two matrices and as many KV heads as query heads only")
    notes = [f"gpt2 of {made.shape()}, vocabulary {made.vocab}"]
    if projected:
        more = stored_params(made.operators) - stored_params(operators)
        notes.append(
            f"its embedding is {width} wide, the bundle's {geometry.embed_width} with a projection before and behind:"
            f" {more:,} more weights are read per token ({4 * more / 1e6:.1f} MB in float32)"
        )
    return made, notes
