"""A checkpoint's folder in Hugging Face's layout, judged and read without torch: its files, the keys of config.json,
the ids that end a text, the chat template.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json, read_text

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
COPY_AGAIN = "Copy the checkpoint again."
CHOOSE = "Choose a model that `merino-edge recommend --board ID` lists"
TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
PROCESSOR_TEMPLATE = "chat_template.json"  # of models of text and images
TOKENS_MAP = "special_tokens_map.json"
RECORD = "training.json"  # of the run that trained the checkpoint here
# Keys of training, of output, of other programs, and ids that are read elsewhere: none of them changes the logits.
HARMLESS = frozenset({
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eod_token_id",
    "eos_token_id", "gradient_checkpointing", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
    "label2id", "model_type", "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp",
    "problem_type", "return_dict", "task_specific_params", "torch_dtype", "transformers_version", "unk_token_id",
    "use_cache",
})  # fmt: skip
HARMLESS_FORMS = re.compile(r"summary_\w+|\w*(dropout|pdrop|layerdrop)|_attn_implementation\w*|transformers\.js_\w+")
QUANTIZED = ("quantization_config", "compression_config")


def check_checkpoint(folder: Path) -> None:
    """Raise MerinoError if the folder has no config.json, or not all weights as safetensors."""
    if not (folder / CONFIG).is_file():
        if (folder / "trainer" / "run.json").is_file():
            raise MerinoError(
                f"{folder} is no checkpoint yet: its training run is not finished. Go on with the same"
                " `merino-edge train` command and --resume"
            )
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        remedy = (
            f"It holds {shortened(', '.join(ggufs))}: export a GGUF by the path of the file" if ggufs
            else "`merino-edge train -o` writes one, and so do models downloaded from Hugging Face"
        )  # fmt: skip
        raise MerinoError(f"{folder} is no checkpoint: it has no {CONFIG}. {remedy}")
    missing = [name for name in weight_files(folder) if not (folder / name).is_file()]
    if missing == [WEIGHTS]:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        raise MerinoError(
            f"{folder} has no {WEIGHTS}"
            + (
                f", and {shortened(', '.join(pickles))} is a pickle, which may run code and is not read: convert it"
                " with transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
                if pickles else f". {COPY_AGAIN}"
            )
        )  # fmt: skip
    if missing:
        raise MerinoError(
            f"{folder} lacks {len(missing)} of the files that {SHARDS} names: {shortened(', '.join(missing))}."
            f" {COPY_AGAIN}"
        )


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files with the folder's weights, whether they are there or not."""
    if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file():
        return [WEIGHTS]
    path = folder / SHARDS
    names = _read(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise MerinoError(f"{path} has no weight_map. {COPY_AGAIN}")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise MerinoError(
                f"{path} names {shortened(repr(name))}, which is no safetensors file beside it. {COPY_AGAIN}"
            )
    return sorted(set(names.values()))


def check_tokenizer(folder: Path) -> None:
    """Raise MerinoError if the folder has no tokenizer.json, without which a bundle cannot read or write text."""
    if (folder / TOKENIZER).is_file():
        return
    others = [name for name in ("tokenizer.model", "merges.txt", "vocab.json") if (folder / name).is_file()]
    remedy = (
        f"write one from its {others[0]} with"
        " transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        if others else "copy it from where the weights came from; on the hub it lies beside config.json"
    )  # fmt: skip
    raise MerinoError(f"{folder} has no {TOKENIZER}, without which a bundle reads and writes no text: {remedy}")


def trained_name(folder: Path) -> str | None:
    """Return the name of the model that was trained into the folder; None if no record has it."""
    try:
        name = read_json(str(folder / RECORD), "")["name"]
    except (MerinoError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and name else None


def split_keys(
    content: Mapping[str, Any], known: Collection[str], declared: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the keys of config.json, as `key is value`, that may change the logits, and those that cannot.

    Both leave out null, keys in `known` and harmless keys. `declared`: keys that transformers' configuration class
    reads. An export is compared with that class, so a key that the class does not read is ignored on both sides.
    """
    read, ignored = list[str](), list[str]()
    for key, value in content.items():
        if value is not None and key not in known and key not in HARMLESS and not HARMLESS_FORMS.fullmatch(key):
            (read if key in declared else ignored).append(f"{shortened(key)} is {shortened(repr(value))}")
    return read, ignored


def check_not_quantized(content: Mapping[str, Any], path: Path) -> None:
    """Raise MerinoError for a checkpoint whose weights were quantized for another program."""
    config = next((content[key] for key in QUANTIZED if content.get(key) is not None), None)
    if config is not None:
        method = config.get("quant_method") if isinstance(config, dict) else None
        by = f" by {shortened(str(method))}" if method else ""
        raise MerinoError(
            f"{path} has a quantization_config: its weights were quantized{by} for another program. Take the model that"
            " it was quantized from, or a GGUF of it; `merino-edge export --precision int4` quantizes it here"
        )


def stop_ids_of(folder: Path, in_config: Any, vocab: int) -> tuple[int, ...]:
    """Return the ids of generation_config.json and then those of config.json, each once. The token that ends a chat
    model's turn is often only in the first.

    `in_config`: the value of eos_token_id there. Raise MerinoError for a value that is no id of the vocabulary.
    """
    path = folder / GENERATION_CONFIG
    first = ids_in(_read(path).get("eos_token_id"), vocab, path)
    return tuple(dict.fromkeys([*first, *ids_in(in_config, vocab, folder / CONFIG)]))


def ids_in(value: Any, vocab: int, path: Path) -> Iterator[int]:
    """Yield an eos_token_id of JSON: null, an id, or a list of ids."""
    for token_id in value if isinstance(value, list) else [] if value is None else [value]:
        if type(token_id) is not int or not 0 <= token_id < vocab:
            raise MerinoError(f"{path}: eos_token_id is {shortened(repr(value))}, allowed: 0 to {vocab - 1}")
        yield token_id


class ChatTemplate(NamedTuple):
    """`text` in Jinja. `tokens`: its variables for special tokens, such as `bos_token`. `source`: for messages."""

    text: str
    tokens: dict[str, str]
    source: str


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Read chat_template.jinja, else tokenizer_config.json, whose template `default` is preferred if it has several,
    else chat_template.json.

    None if the folder has none: the model is no chat model. Raise MerinoError for files that cannot be read.
    """
    config = _read(folder / TOKENIZER_CONFIG)
    tokens = special_tokens({**_read(folder / TOKENS_MAP), **config})
    path = folder / TEMPLATE
    if path.is_file():
        return ChatTemplate(read_text(str(path), "a chat template", COPY_AGAIN), tokens, str(path))
    template = config.get("chat_template") or _read(folder / PROCESSOR_TEMPLATE).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default", next(iter(named.values()), None))
    if template is None:
        return None
    source = f"chat_template in {folder / TOKENIZER_CONFIG}"
    if not isinstance(template, str):
        raise MerinoError(f"{source} is {shortened(repr(template))}, not a string. {COPY_AGAIN}")
    return ChatTemplate(template, tokens, source)


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens by name, such as `bos_token`. Each is a string, or an object with `content`."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if re.fullmatch("[a-z_]+_token", name) and isinstance(text, str):
            tokens[name] = text
    return dict(sorted(tokens.items()))


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    content = read_json(str(path), COPY_AGAIN)
    if not isinstance(content, dict):
        raise MerinoError(f"{path} is not an object. {COPY_AGAIN}")
    return content
