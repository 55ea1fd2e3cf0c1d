"""The packages of the extra `delivery`, imported when they are used: all else of merino_edge works without them."""

import importlib
from typing import Any

from merino_edge.storage.extras import remedy
from merino_runtime.errors import MerinoError


def needed(module: str) -> Any:
    """Import a module. Raises MerinoError with the command that installs its extra if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MerinoError(f"{module.partition('.')[0]} is not installed: {remedy('delivery')}") from error
