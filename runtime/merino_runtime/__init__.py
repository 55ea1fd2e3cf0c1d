"""The board side: opens a bundle, holds its KV cache, generates text. Needs Python 3.6, numpy and one backend."""
__version__ = "0.1.0"
