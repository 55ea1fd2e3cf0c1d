"""The geometry of a SOURCE, without its weights: what a score or a prediction needs."""

from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.files import is_bundle
from merino_edge.design.design_file import Design, model_name
from merino_edge.export.request import Plan, find_source
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
    """Nothing is downloaded. Raises MerinoError where `what` is no source, or nothing here says its geometry."""
    found = find_source(what)
    if isinstance(found, Model):
        return Described(found.id, found.geometry)
    if isinstance(found, Plan):
        plan = found.content
        return Described(model_name(found.path, plan), plan.architecture if isinstance(plan, Design) else plan)
    if isinstance(found, HubModel):
        if not is_cached(found):
            raise MerinoError(
                f"{found.name} is not in the hub's cache here, so its config.json, which says its geometry, is missing:"
                " download it, and give its folder"
            )
        return Described(found.name, geometry_in(fetch(found)))
    if is_bundle(found):
        bundle = load_bundle(str(found))
        return Described(bundle.name, read_geometry(bundle.family, bundle.architecture))
    return Described(found.stem if found.is_file() else found.name, geometry_in(found))


def geometry_in(path: Path) -> Geometry:
    """Of a GGUF file or a checkpoint's folder."""
    if path.is_file():
        from merino_edge.families.gguf.checkpoint import geometry_of_gguf

        return geometry_of_gguf(path)
    from merino_edge.families.hugging_face import checked_geometry, read_config

    return checked_geometry(read_config(path), path)
