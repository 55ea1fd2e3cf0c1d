"""Environment variables that must be set before numpy or onnxruntime is imported. A value of the user's stands."""
import os
import platform
import re

# ONNX Runtime from 1.28 on computes attention in tiles; "1" brings back products of whole matrices, as before.
BY_PRODUCTS = "ORT_GQA_DISABLE_FLASH_ATTENTION"
CORTEX_A53 = "0xd03"  # "CPU part" in /proc/cpuinfo


def prepare_environment() -> None:
    """Called by the import of `merino_runtime`, so before any import of numpy or onnxruntime by this project."""
    # onnxruntime 1.32 on Linux writes a device id and a database into the user's cache when it is imported, and sends
    # events over HTTPS.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if _faster_by_products():
        os.environ.setdefault(BY_PRODUCTS, "1")
    if platform.machine() == "aarch64":
        # OpenBLAS in numpy 1.19.5, the last for Python 3.6, misreads the Jetson Nano's CPU and dies of an illegal
        # instruction at import. The generic kernels cost nothing: the runtime multiplies no matrices in numpy.
        os.environ.setdefault("OPENBLAS_CORETYPE", "ARMV8")


def attention_path() -> str:
    """How ONNX Runtime 1.28 and later is told to compute attention, for people."""
    if os.environ.get(BY_PRODUCTS, "0") == "0":
        return "in tiles, as onnxruntime does by itself"
    return f"by products of whole matrices ({BY_PRODUCTS})"


def _faster_by_products() -> bool:
    """Measured on x86; on Cortex-A53, by a model of the core, 1.5 cycles a multiply-add and not 2.9, on A72 level
    (docs/decisions/quantised-cache.md)."""
    if platform.machine() in ("x86_64", "AMD64"):
        return True
    if platform.machine() != "aarch64":
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return CORTEX_A53 in re.findall(r"^CPU part\s*:\s*(\S+)", file.read(), re.MULTILINE)
    except OSError:
        return False
