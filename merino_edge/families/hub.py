"""Models of the Hugging Face hub: their files in huggingface_hub's cache, fetched where they are not there yet.

The package's own variables hold: HF_HOME and HF_HUB_CACHE (where), HF_HUB_OFFLINE (no network), HF_TOKEN, HF_ENDPOINT.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.storage.atomic import existing_parent
from merino_edge.storage.faults import one_line
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
WEIGHTS = "model*.safetensors"
FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "model.safetensors.index.json", WEIGHTS,
)  # fmt: skip


class HubModel(NamedTuple):
    """A model by its name on the hub, such as `HuggingFaceTB/SmolLM2-135M-Instruct`."""

    name: str


def hub_name(text: str) -> HubModel | None:
    """Return the model that `text` names on the hub; None if it has another form, or is a path that is there."""
    return HubModel(text) if NAME.fullmatch(text) and ".." not in text and not Path(text).exists() else None


def fetch(model: HubModel, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of the model's files, in the cache. Missing files are downloaded, after `say` reported their
    size.

    Raise MerinoError with the remedy where the model cannot be fetched: no network, gated, unknown, no safetensors.
    """
    import huggingface_hub
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # the command line has a spinner of its own
    try:
        try:
            files = huggingface_hub.snapshot_download(model.name, allow_patterns=list(FILES), dry_run=True)
        except DryRunError as error:
            if isinstance(error.__cause__, HfHubHTTPError) and not is_cached(model):
                raise error.__cause__ from None
        else:
            judge_files(model, files, say)
        return Path(huggingface_hub.snapshot_download(model.name, allow_patterns=list(FILES)))
    except MerinoError:
        raise
    except HFValidationError as error:
        raise MerinoError(
            f"{model.name!r} is no folder here and no name on the hub: {one_line(error)}. Correct it"
        ) from error
    except Exception as error:  # its HTTP library changes with its versions, and so do the errors
        raise MerinoError(fault(model, error)) from error


def is_cached(model: HubModel) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model.name, "config.json"), str)


def judge_files(model: HubModel, files: list[Any], say: Callable[[str], None]) -> None:
    """`files`: those that huggingface_hub would download. Raise MerinoError if they are no model, or do not fit the
    disk."""
    from huggingface_hub import constants

    names = {file.filename for file in files}
    if not any(name.endswith(".safetensors") for name in names):
        raise MerinoError(
            f"{model.name} has no {WEIGHTS} on the hub. Weights as pickle (.bin) are not read, since they may run code:"
            " convert them with transformers' save_pretrained, or take a GGUF of the model by its file's path"
        )
    missing = [file for file in files if file.will_download]
    needed = sum(file.file_size or 0 for file in missing)
    if not needed:
        return
    cache = Path(constants.HF_HUB_CACHE)
    place = existing_parent(cache / model.name)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise MerinoError(
            f"{model.name} takes {needed / MB:,.0f} MB and {place} has {free / MB:,.0f} MB: make room, or set"
            " HF_HOME to a folder on another disk"
        )
    say(f"downloading {len(missing)} files of {model.name}, {needed / MB:,.1f} MB, into {cache}")


def fault(model: HubModel, error: Exception) -> str:
    """Return the fault and its remedy, for people."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"{model.name} is gated: accept its terms at https://huggingface.co/{model.name} while logged in, then run"
            " `hf auth login` or set HF_TOKEN, and run this again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{model.name!r} is no folder here, and the hub has no such model that may be seen: look for its name at"
            " https://huggingface.co/models; for a private one run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, OSError) and error.errno is not None and getattr(error, "response", None) is None:
        return f"{model.name} cannot be kept: {one_line(error)}. Make room, or set HF_HOME to another folder"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    reason = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({one_line(error)[:120]})"
    return f"{model.name} is not whole in the cache, and {reason}. {by_hand(model)}"


def by_hand(model: HubModel) -> str:
    """Return how to bring a model to a machine without network."""
    folder = model.name.rpartition("/")[2]
    patterns = " ".join(f'--include "{pattern}"' for pattern in ("*.json", "*.jinja", WEIGHTS))
    return (
        f"On a machine with network: `hf download {model.name} {patterns} --local-dir {folder}`; that is config.json,"
        f" tokenizer.json, {WEIGHTS} and what is beside them. Bring the folder here, and export ./{folder} in place of"
        " the name"
    )
