"""Make baselines by name: OPT's bundles with random weights, exported once per weight format and kept in the user's
cache.

A cached bundle is used again only by the exporter that wrote it. The folder's name ends in a digest of the exporter's
sources, so after an upgrade the baseline is exported again and both sides of a ratio come from the same exporter.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from merino_edge.bundles.files import is_bundle
from merino_edge.export.digest import DIGEST_DIGITS, exporter_digest
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest, graph_format
from merino_edge.export.source import random_source
from merino_edge.families.names import resolve
from merino_edge.families.zoo import Model
from merino_edge.storage.atomic import cache_folder
from merino_runtime.bundle import load_bundle, quantized_cache
from merino_runtime.errors import MerinoError

FLOAT32 = ExportRequest("fp32", dialect="fused")


def baseline_bundles(
    what: str, measured: Sequence[str], precision: str | None, say: Callable[[str], None]
) -> list[str]:
    """Return the folders of the bundles to compare the measured ones with.

    A name such as `opt-350m` gives one per (precision, dialect, cache) among the measured bundles, so that each ratio
    is at equal format. With `precision` it gives one of that precision with a cache of floats, in the dialect of the
    first measured bundle. Any other `what` is a bundle's folder, and has its own precision. Raise MerinoError if the
    dialect has no such precision.
    """
    resolved = resolve(what)
    if not isinstance(resolved, Model):
        return [resolved]
    requests = requests_of(measured) or [FLOAT32]
    if precision is not None:
        requests = [requests[0]._replace(precision=precision, kv=None)]
    return [baseline_bundle(resolved, say, request) for request in requests]


def requests_of(folders: Sequence[str]) -> list[ExportRequest]:
    """Return the formats of the bundles that can be read, each once."""
    bundles = [load_bundle(folder, verify=False) for folder in folders if can_be_read(Path(folder))]
    requests = (
        ExportRequest(bundle.precision, dialect=bundle.dialect, kv=quantized_cache(bundle)) for bundle in bundles
    )
    return list(dict.fromkeys(requests))


def baseline_bundle(model: Model, say: Callable[[str], None], request: ExportRequest = FLOAT32) -> str:
    """Return the folder of a baseline with random weights, which is exported now unless this exporter has done so
    before.

    Bundles of the same format that another exporter left in the cache are then removed. Raise MerinoError for a format
    that is not possible.
    """
    precision, dialect, _, kv, *_ = graph_format(request, None, model.geometry.context)
    form = f"{precision} {dialect}{f' {kv} cache' if kv else ''}"
    stem = f"{model.id}-{form.replace(' ', '-')}"
    folder = cache_folder() / f"{stem}-{exporter_digest()}"
    if is_bundle(folder) and can_be_read(folder):
        return str(folder)
    say(f"exporting {model.id} as {form}, with random weights of its true geometry (once, minutes;"
        f" kept in {folder})")  # fmt: skip
    source = random_source(model.geometry, model.id)
    export(source, folder, request, last_use=True)
    same_format = re.compile(rf"{re.escape(stem)}-[0-9a-f]{{{DIGEST_DIGITS}}}")
    for path in sorted(folder.parent.iterdir()):
        if same_format.fullmatch(path.name) and path != folder:
            say(f"removing {path}, which another version of the exporter wrote")
            shutil.rmtree(path)
    return str(folder)


def can_be_read(folder: Path) -> bool:
    """Return whether a bundle is complete and of the current schema; its hashes are checked when it is measured."""
    try:
        load_bundle(str(folder), verify=False)
    except MerinoError:
        return False
    return True
