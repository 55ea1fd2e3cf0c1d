"""The packages of the extra `delivery`, imported when they are used: all else of merino_edge works without them."""

import importlib
from typing import Any

from merino_runtime.errors import MerinoError


def needed(module: str) -> Any:
    """The module of that name. MerinoError with the command that installs its package if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MerinoError(f"{package} is not installed: python -m pip install {package}") from error
