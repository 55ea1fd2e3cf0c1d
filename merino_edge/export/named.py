"""A SOURCE by its name: its geometry, and its export. A request is checked before torch is imported."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from merino_edge.bundles.files import is_bundle, is_bundle_alone
from merino_edge.design.design_file import DESIGN, load_design
from merino_edge.export.request import (
    LEAST_CONTEXT,
    DesignFile,
    ExportRequest,
    check_context,
    find_source,
    graph_format,
    in_one_format,
    published,
)
from merino_edge.families.checkpoint import check_tokenizer
from merino_edge.families.config_json import judged_config
from merino_edge.families.geometry import Geometry
from merino_edge.families.hub import HubModel, fetch, is_cached
from merino_edge.families.names import resolve
from merino_edge.families.registry import read_geometry
from merino_edge.families.zoo import Model
from merino_edge.storage.atomic import check_folder, check_keeps
from merino_edge.text.documents import check_files, read_texts
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.export.export import Exported

Say = Callable[[str], None]
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


class Described(NamedTuple):
    name: str
    geometry: Geometry


def export_named(
    what: str, out: Path, request: ExportRequest, weights: Path | None, say: Say, progress: Say = lambda _: None
) -> "Exported":
    """Export the SOURCE `what` to the bundle `out`. `weights`: see `find_source`.

    `say` gets the progress of a download and of `auto`, `progress` the name of each step. Raises MerinoError as
    `export` does.
    """
    hub_model = check_request(request, what, weights, out)
    if hub_model:

        def judge(geometry: Geometry) -> None:
            from merino_edge.export.source import check_memory  # imports torch

            check_memory(geometry, hub_model.name)

        fetch(hub_model, say, judge)
    from merino_edge.export.export import export  # imports torch
    from merino_edge.export.source import load_source

    source = load_source(what, weights, say, random=request.random_weights)
    if request.name is not None:
        source = source._replace(name=request.name)
    return export(source, out, request, last_use=True, say=say, progress=progress)


def check_request(request: ExportRequest, what: str, weights: Path | None, out: Path) -> HubModel | None:
    """Check the request without loading the model; return the model of the hub to fetch for it, if any.

    Raises MerinoError for files that cannot be read, an output that would replace an input, a SOURCE that names no
    model, and a combination of options that is not possible.
    """
    if request.name is not None and not NAME.fullmatch(request.name):
        raise MerinoError(f"--name {request.name!r:.80} is not allowed: use up to 64 letters, digits and . _ -")
    text = request.calibration
    if text:
        check_files([text], "--text")
        read_texts([text], "--text")
    inputs = (weights, text, resolve(what))
    check_keeps(out, [Path(path) for path in inputs if isinstance(path, str | Path)])
    check_folder(out, is_bundle_alone)
    source = find_source(what, weights, random=request.random_weights)
    folder = source if isinstance(source, Path) else weights if isinstance(source, Model) else None
    if folder and folder.is_dir() and not is_bundle(folder):
        check_tokenizer(folder)
        judged_config(folder)
    geometry = source.geometry if isinstance(source, DesignFile | Model) else None
    check_context(request.context, geometry.context if geometry else None)
    design = source.design if isinstance(source, DesignFile) else None
    if isinstance(source, Path) and (source / DESIGN).is_file():  # the design that a checkpoint was trained from
        design = load_design(source / DESIGN)
    graph_format(in_one_format(request), design, request.context or LEAST_CONTEXT)
    return None if request.random_weights else published(source, weights)


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
