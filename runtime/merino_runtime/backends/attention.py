"""Chooses between ONNX Runtime's two attention kernels. Standard library only.

From 1.28 on attention is tiled (flash attention). An environment variable, read when a session opens, selects the
earlier kernel: whole matrix multiplications. Which is faster depends on the core and on the cache
(docs/decisions/quantization.md).
"""
import contextlib
import os
import platform
import re
from typing import Iterator

from merino_runtime.bundle import Bundle, quantized_cache
from merino_runtime.io import board

SWITCH = "ORT_GQA_DISABLE_FLASH_ATTENTION"
CORTEX_A53 = "0xd03"  # "CPU part" in /proc/cpuinfo


@contextlib.contextmanager
def faster_attention(bundle: Bundle) -> Iterator[None]:
    """Set the variable while sessions are opened, if the earlier kernel is faster. A value that the user set is
    kept."""
    if SWITCH in os.environ or not is_faster_untiled(bundle):
        yield
        return
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        del os.environ[SWITCH]


def attention_path(bundle: Bundle) -> str:
    """Return the choice for people."""
    if SWITCH in os.environ:
        return f"as {SWITCH}={os.environ[SWITCH]} requires"
    if is_faster_untiled(bundle):
        return "by matrix multiplications, faster here"
    return "as onnxruntime does by default"


def is_faster_untiled(bundle: Bundle) -> bool:
    """Return whether the earlier kernel is faster: on x86 over a quantized cache, by measurement; on Cortex-A53 over a
    float cache, by a model of the core."""
    quantized = quantized_cache(bundle) is not None
    here = platform.machine()
    if here in board.X86_MACHINES:
        return quantized
    parts = re.findall(r"^CPU part\s*:\s*(\S+)", board.read_text("/proc/cpuinfo"), re.MULTILINE)
    return here == "aarch64" and CORTEX_A53 in parts and not quantized
