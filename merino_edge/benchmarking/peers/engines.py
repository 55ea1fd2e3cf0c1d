"""The engines: what each needs installed, and what a name on the command line stands for."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from merino_runtime.errors import MerinoError


class Peer(NamedTuple):
    """An engine at one weight format. `table` is the format of the embedding, which is the LM head too."""

    engine: str
    precision: str  # as the engine calls it
    table: str
    artifact: str  # what is made for it once: `checkpoint`, `ctranslate2` or `gguf`
    runner: str  # the module that opens it
    needs: tuple[tuple[str, str], ...]  # (module to import, package to install)
    kv_share: float = 1.0  # bytes of its KV cache, of those that ours has in float32

    @property
    def shown_precision(self) -> str:
        return self.precision if self.table == self.precision else f"{self.precision}, table {self.table}"


TORCH = (("torch", "torch"), ("transformers", "transformers"))
WITH_Q8_0_CACHE = "llama.cpp-q8_0-cache"
LLAMA = (("xllamacpp", "xllamacpp"), ("gguf", "gguf"))


# Of a cache in float32. Its default is float16; Q8_0 has a float16 scale for each 32 values.
LLAMA_KV_SHARES = {"llama.cpp": 16 / 32, WITH_Q8_0_CACHE: 8.5 / 32}


def llama_cpp(precision: str, table: str, engine: str = "llama.cpp", artifact: str = "gguf") -> Peer:
    return Peer(engine, precision, table, artifact, "run_llama_cpp", LLAMA, LLAMA_KV_SHARES[engine])


PEERS = (
    Peer("transformers", "fp32", "fp32", "checkpoint", "run_transformers", TORCH),
    Peer("torch.compile", "fp32", "fp32", "checkpoint", "run_transformers", TORCH),
    Peer("ctranslate2", "int8", "int8", "ctranslate2", "run_ctranslate2", (*TORCH, ("ctranslate2", "ctranslate2"))),
    llama_cpp("F32", "F32"),
    llama_cpp("Q8_0", "Q8_0"),
    llama_cpp("Q4_0", "Q8_0"),
    llama_cpp("Q4_0", "Q4_0"),
    llama_cpp("Q8_0", "Q8_0", WITH_Q8_0_CACHE),
    llama_cpp("Q4_0", "Q8_0", WITH_Q8_0_CACHE),
)
ENGINES = tuple(dict.fromkeys(peer.engine for peer in PEERS))


def given_gguf(precision: str, table: str) -> list[Peer]:
    """llama.cpp on a file of the user's, by either cache: types of its matrices and of its embedding."""
    return [llama_cpp(precision, table, engine, "given") for engine in LLAMA_KV_SHARES]


def parse_engines(text: str) -> tuple[str, ...]:
    """`all`, or names with commas between them -> names. Raises MerinoError with what is known."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    unknown = sorted(set(names) - {*ENGINES, "all"})
    if unknown or not names:
        raise MerinoError(
            f"--peers {text!r} names {', '.join(unknown) or 'no engine'}: known are {', '.join(ENGINES)}, and all"
        )
    return ENGINES if "all" in names else tuple(dict.fromkeys(names))


def peers_of(engines: Sequence[str]) -> list[Peer]:
    return [peer for peer in PEERS if peer.engine in engines]


def missing(peer: Peer) -> str | None:
    """Why it cannot run here, with the command that installs it; None where all that it needs is installed."""
    lacking = [package for module, package in peer.needs if find_spec(module) is None]
    if not lacking:
        return None
    return f"{peer.engine} is not installed: python -m pip install {' '.join(lacking)}"
