"""Run the llama.cpp that `make peers-native` builds for this machine into the cache folder, and name the CPU features
that a build uses.

The wheel on PyPI is built for AVX2, whatever the machine has. A row that llama.cpp ran in a build for another machine
is flagged.
"""

import re
import sys
import types
from collections.abc import Callable, Sequence, Set
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from merino_edge.storage.atomic import cache_folder

GENERIC_BUILD = "generic-build"  # flag of a row
# By a feature's name in bundles and profiles, its name in llama.cpp's description of itself.
FEATURES = {
    "f16c": "F16C", "fma": "FMA", "avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI", "amx_int8": "AMX_INT8", "dotprod": "DOTPROD",
    "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
Round = Callable[[Sequence[int], int], tuple[float, list[float], list[int]]]


def native_build() -> Path | None:
    """Return the folder of llama-cpp-python's package; None if it was not built."""
    folder = cache_folder() / "peers-native" / "llama_cpp"
    return folder if (folder / "llama_cpp.py").is_file() else None


def lacking(described: str, isa: Set[str]) -> list[str]:
    """Return the features of this machine that a build does not use, by llama.cpp's description of itself."""
    used = set(re.findall(r"(\w+) = 1", described))
    return [name for name, known in FEATURES.items() if name in isa and known not in used]


def library(folder: Path) -> Any:
    """Return the functions of llama.h. The package itself is not imported: it needs more than these."""
    if "llama_cpp" not in sys.modules:
        package = types.ModuleType("llama_cpp")
        package.__path__ = [str(folder)]
        sys.modules["llama_cpp"] = package
    return import_module("llama_cpp.llama_cpp")


def version(folder: Path) -> str:
    match = re.search(r'__version__ = "([^"]+)"', (folder / "__init__.py").read_text())
    return match[1] if match else "?"


def described(folder: Path) -> str:
    return str(library(folder).llama_print_system_info().decode())


def open_native(folder: Path, request: dict[str, Any], q8_0_cache: bool) -> Round:
    """Return a function that runs one prefill and greedy decode steps, each timed to the argmax of its token."""
    llama = library(folder)
    # 1. The model, with a log callback that prints nothing.
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(request["path"].encode(), llama.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp does not load {request['path']}")
    # 2. Its context.
    options = llama.llama_context_default_params()
    options.n_ctx = request["prompt"] + request["steps"] + 8
    options.n_batch = options.n_ubatch = max(512, request["prompt"])  # the prompt in one piece
    options.n_threads = options.n_threads_batch = request["threads"]
    if q8_0_cache:
        options.type_k = options.type_v = llama.GGML_TYPE_Q8_0
        options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED  # which its values need
    context = llama.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp makes no context of such a cache")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def next_id(ids: Sequence[int]) -> int:
        tokens = (llama.llama_token * len(ids))(*ids)
        if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError(f"llama.cpp does not decode {len(ids)} ids")
        return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (vocab,)).argmax())

    def run_round(ids: Sequence[int], steps: int) -> tuple[float, list[float], list[int]]:
        _ = quiet  # llama.cpp calls it as long as there is a context
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        moments, generated = [perf_counter()], [next_id(ids)]
        moments.append(perf_counter())
        for _ in range(steps):
            generated.append(next_id(generated[-1:]))
            moments.append(perf_counter())
        times_ms = [1e3 * (end - start) for start, end in zip(moments, moments[1:], strict=False)]
        return times_ms[0], times_ms[1:], generated

    return run_round
