"""A chat template as a folder in Hugging Face's layout has it."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError
from merino_runtime.json_file import read_json, read_text

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENS_MAP = "special_tokens_map.json"
AGAIN = "Copy the checkpoint again."


class ChatTemplate(NamedTuple):
    """`text` in Jinja. `tokens`: its variables for special tokens, such as `bos_token`. `source`: for messages."""

    text: str
    tokens: dict[str, str]
    source: str


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Of chat_template.jinja, or else of tokenizer_config.json; of several by name the one that is called `default`.

    None where the folder has none: the model was not trained to talk. Raises MerinoError for files that cannot be read.
    """
    config = _read(folder / TOKENIZER_CONFIG)
    tokens = special_tokens({**_read(folder / TOKENS_MAP), **config})
    path = folder / TEMPLATE
    if path.is_file():
        return ChatTemplate(read_text(str(path), "a chat template", AGAIN), tokens, str(path))
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("default", next(iter(named.values()), None))
    if given is None:
        return None
    source = f"chat_template in {folder / TOKENIZER_CONFIG}"
    if not isinstance(given, str):
        raise MerinoError(f"{source} is {shortened(repr(given))}, not a string. {AGAIN}")
    return ChatTemplate(given, tokens, source)


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """By name, such as `bos_token`: each is a string, or an object with `content`."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if re.fullmatch("[a-z_]+_token", name) and isinstance(text, str):
            found[name] = text
    return dict(sorted(found.items()))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(str(path), AGAIN)
    if not isinstance(content, dict):
        raise MerinoError(f"{path} is not an object. {AGAIN}")
    return content
