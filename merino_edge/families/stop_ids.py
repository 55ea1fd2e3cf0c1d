"""The ids that end a text, from the folder of a Hugging Face model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merino_edge.families.checkpoint import CONFIG
from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError
from merino_runtime.json_file import read_json

GENERATION_CONFIG = "generation_config.json"


def stop_ids_of(folder: Path, in_config: Any, vocab: int) -> tuple[int, ...]:
    """Those of generation_config.json and then those of config.json, each once. A chat model's own end of turn often
    stands in the first only.

    `in_config`: the value of eos_token_id there. Raises MerinoError for a value that is no id of the vocabulary.
    """
    found = [*ids_in(in_config, vocab, folder / CONFIG)]
    path = folder / GENERATION_CONFIG
    if path.is_file():
        content = read_json(str(path), "Copy the checkpoint again.")
        if not isinstance(content, dict):
            raise MerinoError(f"{path} is not an object. Copy the checkpoint again.")
        found = [*ids_in(content.get("eos_token_id"), vocab, path), *found]
    return tuple(dict.fromkeys(found))


def ids_in(given: Any, vocab: int, path: Path) -> Iterator[int]:
    """An eos_token_id of JSON: null, an id, or a list of ids."""
    for each in given if isinstance(given, list) else [] if given is None else [given]:
        if type(each) is not int or not 0 <= each < vocab:
            raise MerinoError(f"{path}: eos_token_id is {shortened(repr(given))}, allowed: 0 to {vocab - 1}")
        yield each
