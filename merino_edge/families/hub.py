"""Models of the Hugging Face hub: their files in huggingface_hub's cache, fetched where they are not there yet.

The package's own variables hold: HF_HOME and HF_HUB_CACHE (where), HF_HUB_OFFLINE (no network), HF_TOKEN, HF_ENDPOINT.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.families.checkpoint import CONFIG
from merino_edge.families.config_json import judged_config
from merino_edge.families.geometry import Geometry
from merino_edge.storage.atomic import existing_parent
from merino_edge.storage.faults import one_line
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
WEIGHTS = "model*.safetensors"
FILES = (
    CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "model.safetensors.index.json", WEIGHTS,
)  # fmt: skip


class HubModel(NamedTuple):
    """A model by its name on the hub, such as `HuggingFaceTB/SmolLM2-135M-Instruct`."""

    name: str


def hub_name(text: str) -> HubModel | None:
    """Return the model that `text` names on the hub; None if it has another form, or is a path that is there."""
    return HubModel(text) if NAME.fullmatch(text) and ".." not in text and not Path(text).exists() else None


def fetch(
    model: HubModel, say: Callable[[str], None] = lambda _: None, judge: Callable[[Geometry], None] = lambda _: None
) -> Path:
    """Return the folder of the model's files, in the cache. Missing files are downloaded, after `say` reported their
    size; it gets a line at each tenth. huggingface_hub goes on after a broken connection, and a later call keeps the
    files that are complete.

    config.json is downloaded and judged before any weights: `judge` gets the geometry and may raise. Raise MerinoError
    with the remedy for a model that is not exported, and for one that cannot be fetched: no network, gated, unknown, no
    safetensors.
    """
    import huggingface_hub
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError

    try:
        # 1. config.json, to judge the model: by its text alone, and then by its geometry.
        folder = huggingface_hub.snapshot_download(model.name, allow_patterns=[CONFIG], tqdm_class=silent_bar())
        judged_config(Path(folder))
        from merino_edge.families.hugging_face import folder_geometry  # loads torch

        judge(folder_geometry(Path(folder), model.name))
        # 2. The list of files, to judge their size. Without network the cache may hold all of them.
        try:
            files = huggingface_hub.snapshot_download(
                model.name, allow_patterns=list(FILES), dry_run=True, tqdm_class=silent_bar()
            )
        except DryRunError as error:
            if isinstance(error.__cause__, HfHubHTTPError) and not is_cached(model):
                raise error.__cause__ from None
            total = 0
        else:
            total = judge_files(model, files, say)
        # 3. The missing files.
        bar = silent_bar(lambda done: say(f"{done / MB:,.0f} of {total / MB:,.0f} MB"), total)
        return Path(huggingface_hub.snapshot_download(model.name, allow_patterns=list(FILES), tqdm_class=bar))
    except MerinoError:
        raise
    except HFValidationError as error:
        raise MerinoError(
            f"{model.name!r} is no folder here and no name on the hub: {one_line(error)}. Correct it"
        ) from error
    except Exception as error:  # its HTTP library changes with its versions, and so do the errors
        raise MerinoError(fault(model, error)) from error


def silent_bar(report: Callable[[float], None] = lambda _: None, total: int = 0) -> Any:
    """Return a class of progress bars that draw nothing, because the command line has a spinner of its own. The bar
    that counts the bytes on disk calls `report` with them at each tenth of `total`."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, name: str | None = None, **options: Any):
            super().__init__(*args, **{**options, "disable": True})
            self.counts, self.done = name == "huggingface_hub.snapshot_download", 0.0

        def update(self, n: float | None = 1) -> None:
            before, self.done = self.done, self.done + (n or 0)
            if self.counts and total and int(10 * self.done / total) > int(10 * before / total):
                report(self.done)

    return Silent


def is_cached(model: HubModel) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model.name, CONFIG), str)


def judge_files(model: HubModel, files: list[Any], say: Callable[[str], None]) -> int:
    """Return the bytes to download. `files`: those of the model. Raise MerinoError if they are no model, or do not fit
    the disk."""
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
        return 0
    cache = Path(constants.HF_HUB_CACHE)
    place = existing_parent(cache / model.name)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise MerinoError(
            f"{model.name} takes {needed / MB:,.0f} MB and {place} has {free / MB:,.0f} MB: make room, or set"
            " HF_HOME to a folder on another disk"
        )
    say(f"downloading {len(missing)} files of {model.name}, {needed / MB:,.1f} MB, into {cache}")
    return needed


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
    reason = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({one_line(error)[:60]})"
    folder = model.name.rpartition("/")[2]
    patterns = " ".join(f'--include "{pattern}"' for pattern in ("*.json", "*.jinja", WEIGHTS))
    return (
        f"{model.name} is not complete in the cache, and {reason}. On a machine with network: `hf download {model.name}"
        f" {patterns} --local-dir {folder}` (config.json, tokenizer.json, {WEIGHTS} and"
        f" templates). Copy the folder here, and give ./{folder} instead of the name"
    )
