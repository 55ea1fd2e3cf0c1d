"""The extras of the package, and the error that names the one that a command needs."""

from merino_runtime.errors import MerinoError

# Modules by extra. The base install has none of them.
EXTRAS = {
    "export": ("torch", "transformers", "onnx", "gguf", "safetensors", "huggingface_hub"),
    "train": ("accelerate", "datasets", "peft", "pyarrow", "tensorboard"),
    "eval": ("lm_eval",),
    "delivery": ("asyncssh", "cryptography"),
    "serve": ("llguidance",),
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
