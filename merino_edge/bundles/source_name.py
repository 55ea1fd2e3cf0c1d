"""What a SOURCE on the command line names: a model of the zoo or the hub, a design file, a GGUF file, or the folder of
a checkpoint or a bundle. Loads no torch before a geometry is read."""

from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.files import is_bundle
from merino_edge.design.design_file import DESIGN, Design, read_plan
from merino_edge.families.checkpoint import check_checkpoint
from merino_edge.families.designed import Architecture
from merino_edge.families.geometry import Geometry
from merino_edge.families.hub import HubModel, fetch, hub_name, is_cached
from merino_edge.families.names import is_gguf, resolve
from merino_edge.families.registry import read_geometry
from merino_edge.families.zoo import Model, exportable_models
from merino_edge.storage.faults import near_names
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError


class DesignFile(NamedTuple):
    """A design.json, or an architecture as JSON: a model to build, without weights."""

    path: Path
    content: Design | Architecture

    @property
    def design(self) -> Design | None:
        return self.content if isinstance(self.content, Design) else None

    @property
    def geometry(self) -> Architecture:
        return self.content.architecture if isinstance(self.content, Design) else self.content

    @property
    def name(self) -> str:
        """The model's name: the file's stem; for a `design.json`, prefixed with the board's id."""
        if isinstance(self.content, Design) and self.path.name == DESIGN:
            return f"{Path(self.content.device).stem}-{self.path.stem}"
        return self.path.stem


FoundSource = Model | HubModel | DesignFile | Path


def find_source(what: str, weights: Path | None = None, *, random: bool = False) -> FoundSource:
    """Return what `what` names: a model of the zoo or of the hub, a design file, a GGUF file, or the folder of a bundle
    or checkpoint.

    `weights`: for a model of the zoo, a local Hugging Face folder instead of the published weights. `random`: whether
    random weights replace these. Raises MerinoError if `what` is ambiguous or names no source, or if a folder is no
    checkpoint.
    """
    named = resolve(what)
    if isinstance(named, Model):
        if weights:
            check_checkpoint(weights)
        return named
    if weights or random:
        raise MerinoError(
            "--set weights goes with a model of the catalog, such as opt-350m: give a checkpoint folder by its own path"
        )
    path = Path(named)
    if path.is_file():
        return path if is_gguf(path) else DesignFile(path, read_plan(path))
    if not path.is_dir():
        hub_model = hub_name(what)
        if hub_model:
            return hub_model
        raise MerinoError(
            f"{what!r} names no model: give a checkpoint folder, a GGUF file, a name on the hub such as"
            " HuggingFaceTB/SmolLM2-135M-Instruct, a design.json, an architecture's JSON, a bundle in fp32 or"
            f" int8, embedded, or a model that `merino-edge recommend` lists{near_names(what, exportable_models())}"
        )
    if not is_bundle(path):
        check_checkpoint(path)
    return path


def published(source: FoundSource, weights: Path | None = None) -> HubModel | None:
    """Return the model of the hub that the source is loaded from; None for a local source."""
    if isinstance(source, Model):
        return None if weights else HubModel(source.hub)
    return source if isinstance(source, HubModel) else None


class Described(NamedTuple):
    name: str
    geometry: Geometry


def describe(what: str) -> Described:
    """Return the name and the geometry of a SOURCE. Downloads nothing.

    Raises MerinoError if `what` names no source, or if its geometry is not on this machine.
    """
    source = find_source(what)
    if isinstance(source, Model):
        return Described(source.id, source.geometry)
    if isinstance(source, DesignFile):
        return Described(source.name, source.geometry)
    if isinstance(source, HubModel):
        if not is_cached(source):
            raise MerinoError(
                f"{source.name} is not in the hub's cache here, so its config.json with the geometry is missing:"
                " download it, and give its folder"
            )
        name, source = source.name, fetch(source)
    elif is_bundle(source):
        bundle = load_bundle(str(source))
        return Described(bundle.name, read_geometry(bundle.family, bundle.architecture))
    else:
        name = source.stem if source.is_file() else source.name
    if source.is_file():
        from merino_edge.families.gguf.checkpoint import geometry_of_gguf

        return Described(name, geometry_of_gguf(source))
    from merino_edge.families.hugging_face import folder_geometry

    return Described(name, folder_geometry(source, source))
