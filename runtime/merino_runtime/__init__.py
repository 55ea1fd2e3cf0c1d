"""The board side: opens a bundle, holds its KV cache, generates text. Needs Python 3.6, numpy and one backend."""
from merino_runtime.io.start import prepare_environment

__version__ = "0.1.0"

prepare_environment()
