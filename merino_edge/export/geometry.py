"""The geometry of a SOURCE, without its weights: what a score or a prediction needs."""

from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.files import is_bundle
from merino_edge.export.request import DesignFile, find_source
from merino_edge.families.geometry import Geometry
from merino_edge.families.hub import HubModel, fetch, is_cached
from merino_edge.families.registry import read_geometry
from merino_edge.families.zoo import Model
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError


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
        return Described(source.name, geometry_in(fetch(source)))
    if is_bundle(source):
        bundle = load_bundle(str(source))
        return Described(bundle.name, read_geometry(bundle.family, bundle.architecture))
    return Described(source.stem if source.is_file() else source.name, geometry_in(source))


def geometry_in(path: Path) -> Geometry:
    """Return the geometry of a GGUF file or of a checkpoint's folder."""
    if path.is_file():
        from merino_edge.families.gguf.checkpoint import geometry_of_gguf

        return geometry_of_gguf(path)
    from merino_edge.families.hugging_face import checked_geometry, read_config

    return checked_geometry(read_config(path), path)
