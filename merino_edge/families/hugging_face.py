"""Hugging Face models of the known families: built from a geometry, or read from a folder.

Importing this module registers the families that transformers does not have, so that `AutoModelForCausalLM` loads them.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel, set_seed
from transformers.utils import logging

from merino_edge.families.checkpoint import (
    CONFIG,
    COPY_AGAIN,
    TOKENIZER,
    ChatTemplate,
    check_checkpoint,
    check_tokenizer,
    read_chat_template,
    split_keys,
    stop_ids_of,
)
from merino_edge.families.config_json import (
    OTHER_WEIGHTS,
    TEXT_WEIGHTS,
    Judged,
    judged_config,
    switch_faults,
    variant,
)
from merino_edge.families.family import LOADER, TRANSFORMERS
from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import FAMILIES, family_of
from merino_edge.storage.atomic import write_text
from merino_edge.storage.faults import fault_list, one_line
from merino_runtime.errors import MerinoError

SEED = 0  # of random weights
Room = Callable[[Geometry], AbstractContextManager[None]]  # where a model's weights are to lie
LOADER_SOURCE = '''\
"""For transformers, which runs this file with trust_remote_code=True. It needs the package merino_edge.

trust_remote_code is not needed after `import merino_edge.families.hugging_face`.
"""

from {module} import {classes}  # noqa: F401
'''

for _family in FAMILIES.values():
    _family.model_class()  # its module registers what transformers does not have


class Checkpoint(NamedTuple):
    """A trained model in a folder. Any of `stop_ids` ends a text.

    `tokenizer`: tokenizer.json, the text of one, or None; `chat`: the chat template, or None.
    """

    geometry: Geometry
    model: PreTrainedModel
    stop_ids: tuple[int, ...]
    tokenizer: Path | str | None
    chat: ChatTemplate | None = None


def build_model(geometry: Geometry, **config: Any) -> PreTrainedModel:
    """Return a model with weights from torch's random generator, which the caller seeds.

    `config`: more keys of transformers' configuration.
    """
    family = family_of(geometry)
    model: PreTrainedModel = family.model_class()(family.config_of(geometry, **config))
    return model


def random_model(geometry: Geometry) -> PreTrainedModel:
    """Return a model for inference with random weights, the same at each call. Seeds all generators."""
    set_seed(SEED)
    return build_model(geometry).eval()


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """config.json and model.safetensors, and the family's loader where transformers needs one."""
    family = FAMILIES[model.config.model_type]
    if family.module != TRANSFORMERS:
        classes = {"AutoConfig": family.config_name, "AutoModelForCausalLM": family.model_name}
        model.config.auto_map = {name: f"{LOADER}.{kind}" for name, kind in classes.items()}
        source = LOADER_SOURCE.format(module=family.module, classes=", ".join(classes.values()))
        write_text(folder / f"{LOADER}.py", source)
    model.save_pretrained(folder)


def read_checkpoint(
    folder: Path, room: Room = lambda _: nullcontext(), say: Callable[[str], None] = lambda _: None
) -> Checkpoint:
    """Return a model in float32 with its tokenizer. `room` returns the context that the weights are read in, and may
    raise. `say` gets one line with the keys of config.json that nothing reads, and one on weights that are skipped.

    Raise MerinoError for an unknown family, an unsupported variant, and files that are missing or damaged.
    """
    check_checkpoint(folder)
    judged = judged_config(folder)
    config = transformers_config(judged, folder, say)
    geometry = checked_geometry(config, folder)
    place = room(geometry)
    if (folder / "merges.txt").is_file():  # the older form of a tokenizer, which is not read
        check_tokenizer(folder)
    tokenizer = folder / TOKENIZER if (folder / TOKENIZER).is_file() else None
    stop_ids = stop_ids_of(folder, config.eos_token_id, geometry.vocab)
    chat = read_chat_template(folder) if tokenizer else None
    with place:
        model = read_weights(judged, config, folder, say)
    return Checkpoint(geometry, model, stop_ids, tokenizer, chat)


def checked_geometry(config: Any, source: Path | str) -> Geometry:
    """Return the geometry in a configuration of `source`, which messages name. Raise MerinoError for a variant that its
    family's graph builder cannot build."""
    family = FAMILIES[config.model_type]
    values = {key: getattr(config, key) for key in family.supported if hasattr(config, key)}
    if faults := switch_faults(config.model_type, values):
        raise variant(source, config.model_type, faults)
    try:
        return family.geometry.of_config(config)
    except ValidationError as error:
        raise variant(source, config.model_type, fault_list(error)) from error
    except MerinoError as refusal:
        raise variant(source, config.model_type, str(refusal)) from refusal


def folder_geometry(folder: Path, source: Path | str) -> Geometry:
    """Return the geometry in the config.json of a local folder. `source`: the model's name in messages."""
    return checked_geometry(transformers_config(judged_config(folder), folder), source)


def transformers_config(judged: Judged, folder: Path, say: Callable[[str], None] = lambda _: None) -> Any:
    """Return transformers' configuration of a config.json.

    `say` gets one line with the keys that nothing reads. Raise MerinoError for a key that transformers' class reads and
    the family's graph builder does not know.
    """
    kind, words = judged.kind, judged.words
    family = FAMILIES[kind]
    refused, ignored = split_keys(words, family.keys | set(family.supported), family.declared_keys())
    if refused:
        raise variant(folder, kind, ", ".join(refused[:5]))
    if ignored:
        say(f"{CONFIG}: {', '.join(ignored)} ignored, because transformers' {kind} class does not read it")
    if judged.inner:
        return made_config(folder / CONFIG, lambda: AutoConfig.for_model(**words))
    return made_config(folder / CONFIG, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False))


def made_config(path: Path, make: Callable[[], Any]) -> Any:
    """Return the result of `make`, a configuration of transformers' from the file `path`. Raise MerinoError if it
    fails."""
    try:
        return make()
    except MerinoError:
        raise
    except Exception as error:  # transformers checks few values, and raises whatever a wrong one leads to
        raise MerinoError(f"{path} does not load: {one_line(error)}. {COPY_AGAIN}") from error


def read_weights(
    judged: Judged, config: Any, folder: Path, say: Callable[[str], None] = lambda _: None
) -> PreTrainedModel:
    """Return the model with all weights in float32. `say` gets one line on the weights of images and sound, which are
    skipped.

    Raise MerinoError for missing weights, which transformers would draw at random, and for a head that config.json ties
    to the embedding although the weights differ.
    """
    kind = FAMILIES[judged.kind].model_class()
    renamed, level = {"key_mapping": TEXT_WEIGHTS} if judged.inner else {}, logging.get_verbosity()
    logging.set_verbosity_error()  # a line for each weight that is skipped
    try:
        model, info = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, **renamed
        )
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise MerinoError(f"the weights in {folder} do not load: {one_line(error)}. {COPY_AGAIN}") from error
    finally:
        logging.set_verbosity(level)
    others = {name for name in info["unexpected_keys"] if judged.inner and OTHER_WEIGHTS.match(name)}
    if others:
        say(f"{len(others)} weights for images and sound are skipped: the bundle reads and writes text")
    wrong = sorted(info["missing_keys"]) + sorted(set(info["unexpected_keys"]) - others)
    if wrong or info["mismatched_keys"]:
        raise MerinoError(
            f"the weights in {folder} do not fit its config.json: {', '.join(wrong[:5])} ... {COPY_AGAIN}"
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not embedding.weight:
        raise MerinoError(
            f"the weights in {folder} do not fit its config.json: tie_word_embeddings is true, and lm_head.weight is"
            " not the embedding. Set it to false"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over all weights by name: the same for a model from a folder, a GGUF or a cache."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().data)
    return digest.hexdigest()
