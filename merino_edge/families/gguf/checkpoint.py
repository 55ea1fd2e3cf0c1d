"""A GGUF file as a model of transformers' own class, in float32, with its tokenizer, end tokens and chat template."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.families.geometry import Geometry
from merino_edge.families.gguf.config import config_of
from merino_edge.families.gguf.file import AGAIN, GgufFile, open_gguf
from merino_edge.families.gguf.tensors import Layout, StoredBlocks, layouts, tensors
from merino_edge.families.gguf.tokenizer import chat_template, stop_ids, tokenizer_json
from merino_edge.families.hugging_face import Room, checked_geometry, made_config
from merino_edge.families.registry import FAMILIES
from merino_runtime.errors import MerinoError


class GgufCheckpoint(NamedTuple):
    """`tokenizer`: the content of tokenizer.json. `chat`: its template, None if it has none. `blocks`: the
    matrices as they are stored."""

    geometry: Geometry
    model: PreTrainedModel
    stop_ids: tuple[int, ...]
    tokenizer: str
    chat: ChatTemplate | None
    blocks: StoredBlocks


def read_gguf(path: Path, room: Room = lambda _: nullcontext()) -> GgufCheckpoint:
    """Return all tensors dequantized, one at a time. `room` returns the context that the weights are read in, and may
    raise.

    Raise MerinoError for a file that is damaged, of an architecture, variant or tokenizer that is not known, or whose
    tensors are not those that its metadata describes.
    """
    file = open_gguf(path)
    config, geometry = described(file)
    tokenizer, stops = tokenizer_json(file.metadata), tuple(stop_ids(file.metadata))
    with room(geometry):
        model, places = filled(file, geometry, config)
    chat = chat_template(file.metadata, str(path))
    return GgufCheckpoint(geometry, model, stops, tokenizer, chat, StoredBlocks(file, places, geometry.layout))


def geometry_of_gguf(path: Path) -> Geometry:
    """Return the geometry of a file without reading its weights. Raise MerinoError as `read_gguf`."""
    return described(open_gguf(path))[1]


def described(file: GgufFile) -> tuple[Any, Geometry]:
    """Return transformers' configuration and the geometry of a file."""
    words = config_of(file)
    config = made_config(file.path, lambda: AutoConfig.for_model(**words))
    return config, checked_geometry(config, file.path)


def filled(file: GgufFile, geometry: Geometry, config: Any) -> tuple[PreTrainedModel, Mapping[str, Layout]]:
    """Return the model of a configuration with the file's weights. Shapes are compared before a weight is made."""
    kind = FAMILIES[config.model_type].model_class()
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in stored_weights(kind(config)).items()}
    places = layouts(file, geometry, shapes)
    for name, place in places.items():
        shape = file.tensors[place.stored].shape[place.place is not None :]
        if place.shape(shape) != shapes[name]:
            raise MerinoError(
                f"{file.path}: {place.stored} has the shape {list(shape)}, its metadata describes {list(shapes[name])}."
                f" {AGAIN}"
            )
    with no_init_weights():
        model = kind(config)
    state = model.state_dict()
    with torch.no_grad():
        for name, first, value in tensors(file, places):
            state[name][first : first + len(value)] = torch.from_numpy(np.ascontiguousarray(value))
    model.tie_weights()
    return model.eval(), places


def stored_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the state dict without what is tied to another weight."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return {name: value for name, value in model.state_dict().items() if name not in tied}
