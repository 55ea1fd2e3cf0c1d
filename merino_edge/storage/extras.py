"""The extras of the package, and the error that names the one that a command needs."""

import contextlib
import importlib
import io
from typing import Any

from merino_runtime.errors import MerinoError

# Modules by extra. The base install has none of them.
EXTRAS = {
    "export": ("torch", "transformers", "onnx", "gguf", "safetensors", "huggingface_hub"),
    "train": ("accelerate", "datasets", "peft", "pyarrow"),
    "eval": ("lm_eval",),
    "delivery": ("asyncssh", "cryptography"),
    "serve": ("llguidance",),
    "house": ("wyoming", "websockets"),
}
EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}


def remedy(extra: str) -> str:
    """From a checkout: before the first release anybody can register this project's names on the package index."""
    return f"pip install -e release/merino-runtime -e '.[{extra}]' in a checkout of the repository"


def not_installed(error: ImportError) -> MerinoError | None:
    """Return the error for a module of an extra that cannot be imported; None for any other module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return MerinoError(f"{module} is not installed, which this needs: {remedy(EXTRA_OF[module])}")


def import_extra(module: str) -> Any:
    """Import a module of an extra. Raise MerinoError with the command that installs the extra if that fails.

    What the module prints while it loads is dropped: the warnings concern features that are not used.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        fault = "is not installed" if error.name == package else f"cannot be imported ({error})"
        raise MerinoError(f"{package} {fault}: {remedy(EXTRA_OF[package])}") from error
