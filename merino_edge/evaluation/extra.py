"""Import the packages of the extra `eval` when they are used; the rest of merino_edge works without them."""

import contextlib
import importlib
import io
import logging
import os
from typing import Any

from merino_edge.storage.extras import remedy
from merino_runtime.errors import MerinoError


def needed(module: str) -> Any:
    """Import a module of lm-evaluation-harness. Raise MerinoError with the command that installs it if it cannot be
    imported. Its output while it loads is dropped: the warnings concern features that are not used."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the command shows its own progress
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            package = importlib.import_module(module)
    except ImportError as error:
        raise MerinoError(f"lm-evaluation-harness cannot be imported ({error}): {remedy('eval')}") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return package
