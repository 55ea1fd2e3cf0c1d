"""What a SOURCE can be: a checkpoint's folder, a GGUF, a design.json, an architecture's JSON, a float32 bundle, or a
name, of the catalogue or the hub.

Each becomes a `Source`: a geometry and a torch model, whatever the family.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from merino_edge.bundles.files import is_bundle
from merino_edge.design.design_file import DESIGN, Design, load_design, model_name
from merino_edge.export.memory import check_memory
from merino_edge.export.recover import check_recovered, recover_weights
from merino_edge.export.request import RANDOM, find_source
from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.families.geometry import Geometry
from merino_edge.families.gguf.checkpoint import read_gguf
from merino_edge.families.hub import HubModel, fetch
from merino_edge.families.hugging_face import SEED, TOKENIZER, random_model, read_checkpoint
from merino_edge.families.registry import family_of, layout_of, read_geometry
from merino_edge.families.weights import BlockSource
from merino_edge.families.zoo import Model
from merino_edge.training.run_folder import trained_name
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_text


class Source(NamedTuple):
    """A model to export. `weights` is `trained` or `random`; `design` is the one that it was made from, if any."""

    name: str
    arch: Geometry
    model: PreTrainedModel
    weights: str
    weights_source: str
    stop_ids: tuple[int, ...]
    tokenizer: Path | str | None  # tokenizer.json, or the text of one
    design: Design | None = None
    bundle: Bundle | None = None  # the float32 bundle that it was read from
    chat: ChatTemplate | None = None
    blocks: BlockSource | None = None  # its matrices as they are stored in blocks, where they are

    @property
    def family(self) -> str:
        return family_of(self.arch).name


def load_source(what: str, weights: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Source:
    """`weights`: for a model of the catalogue, such as `opt-350m`, a local Hugging Face folder, or RANDOM. Without, the
    published ones are taken from the hub, or from its cache; `say` gets a line on a download.

    Raises MerinoError where `what` is no source, is ambiguous, or does not load.
    """
    found = find_source(what, weights)
    if isinstance(found, Model) and weights:
        return random_source(found.geometry, found.id) if weights == RANDOM else load_weights_of(found, weights)
    if isinstance(found, Model):
        return load_published(HubModel(found.hub), found.id, say)
    if isinstance(found, HubModel):
        return load_published(found, found.name.rpartition("/")[2], say)
    if isinstance(found, Path) and found.is_file():
        return load_gguf(found)
    if isinstance(found, Path):
        return load_bundle_again(found) if is_bundle(found) else load_checkpoint(found)
    path, plan = found
    name = model_name(path, plan)
    if isinstance(plan, Design):
        return random_source(plan.architecture, name)._replace(design=plan)
    return random_source(plan, name)


def not_finite(model: PreTrainedModel, name: str) -> MerinoError:
    """The error for a model whose logits are not finite."""
    wrong = [each for each, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return MerinoError(
            f"the weights of {name} hold values that are not finite, in {wrong[0]}{more}: copy or download them again,"
            " or, where they were trained here, train with a lower --learning-rate"
        )
    return MerinoError(f"the logits of {name} are not finite although its weights are: nothing can be exported of it")


def random_source(arch: Geometry, name: str) -> Source:
    """A geometry with random weights, the same at each call. Speed does not depend on the values."""
    check_memory(arch, name)
    return Source(name, arch, random_model(arch), "random", f"random, seed {SEED}", (), None)


def load_published(model: HubModel, name: str, say: Callable[[str], None]) -> Source:
    """A model of the hub with its weights."""
    return load_checkpoint(fetch(model, say))._replace(name=name, weights_source=f"hub {model.name}", design=None)


def load_weights_of(known: Model, folder: Path) -> Source:
    """A model of the zoo with its published weights, from a local Hugging Face folder."""
    found = read_checkpoint(folder, lambda geometry: check_memory(geometry, known.id))
    family = family_of(found.geometry).name
    if family != known.family:
        raise MerinoError(f"{folder} is a {family!r} model, {known.id} is {known.family!r}")
    if found.geometry != known.geometry:
        raise MerinoError(
            f"{folder} is not {known.id}: found {found.geometry.shape()}, {known.id} has {known.geometry.shape()}"
        )
    said = f"local folder {folder.name}"
    return Source(
        known.id, found.geometry, found.model, "trained", said, found.stop_ids, found.tokenizer, chat=found.chat
    )


def load_gguf(path: Path) -> Source:
    """A GGUF file: its weights dequantised, and its blocks for a graph of the same ones."""
    found = read_gguf(path, lambda geometry: check_memory(geometry, path.name))
    return Source(
        path.stem, found.geometry, found.model, "trained", f"file {path.name}", found.stop_ids, found.tokenizer,
        chat=found.chat, blocks=found.blocks,
    )  # fmt: skip


def load_checkpoint(folder: Path) -> Source:
    """A trained checkpoint in Hugging Face's layout, with the name and the design that it was trained from."""
    found = read_checkpoint(folder, lambda geometry: check_memory(geometry, folder.name))
    said = f"checkpoint {folder.name}"
    design = kept_design(folder, found.geometry)
    name = trained_name(folder) or folder.name
    return Source(
        name, found.geometry, found.model, "trained", said, found.stop_ids, found.tokenizer, design, chat=found.chat
    )


def kept_design(folder: Path, arch: Geometry) -> Design | None:
    """The design in a checkpoint's folder, if the checkpoint still has its geometry."""
    path = folder / DESIGN
    found = load_design(path) if path.is_file() else None
    return found if found and found.architecture == arch else None


def load_bundle_again(folder: Path) -> Source:
    """A float32 bundle, its weights read back from its graph."""
    bundle = load_bundle(str(folder))
    source = random_source(read_geometry(bundle.family, bundle.architecture), bundle.name)
    recover_weights(bundle, source.model, layout_of(source.arch))
    check_recovered(bundle, source.model)
    tokenizer = folder / TOKENIZER
    return source._replace(
        weights=bundle.weights, weights_source=bundle.weights_source, stop_ids=bundle.stop_ids,
        tokenizer=tokenizer if tokenizer.is_file() else None, bundle=bundle, chat=template_in(bundle),
    )  # fmt: skip


def template_in(bundle: Bundle) -> ChatTemplate | None:
    """The chat template that a bundle was exported with."""
    if bundle.chat is None:
        return None
    path = str(Path(bundle.folder) / bundle.chat.template)
    text = read_text(path, "a chat template", "Copy or export the bundle again.")
    return ChatTemplate(text, bundle.chat.tokens, path)
