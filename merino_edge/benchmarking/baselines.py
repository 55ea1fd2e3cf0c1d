"""Baselines by name: OPT's bundles, exported once per format and kept in the user's cache folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from merino_edge.export.export import export
from merino_edge.export.source import is_bundle, random_source
from merino_edge.families.names import resolve
from merino_edge.families.zoo import Model, exportable_models
from merino_edge.storage.atomic import cache_folder
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError


def baseline_bundles(
    what: str, measured: Sequence[str], precision: str | None, say: Callable[[str], None]
) -> list[str]:
    """Folders to compare the measured bundles with. A name such as `opt-350m` gives one per format among them, so
    that every ratio is at equal format; `precision` fixes it instead, in the dialect of the first bundle.

    Raises MerinoError where a folder is given with a precision: a bundle has its own.
    """
    found = resolve(what)
    if not isinstance(found, Model):
        if precision is not None:
            raise MerinoError(
                f"--baseline-precision goes with {', '.join(exportable_models())}: {what!r} is taken for a bundle,"
                " which has its own. Leave the option out, or name one of these"
            )
        return [found]
    formats = formats_of(measured) or [("fp32", "fused")]
    if precision is not None:
        formats = [(precision, formats[0][1])]
    return [baseline_bundle(found, say, *each) for each in formats]


def formats_of(folders: Sequence[str]) -> list[tuple[str, str]]:
    """(precision, dialect) of each bundle that can be read, each once."""
    bundles = [load_bundle(folder, verify=False) for folder in folders if sound(Path(folder))]
    return list(dict.fromkeys((bundle.precision, bundle.dialect) for bundle in bundles))


def baseline_bundle(model: Model, say: Callable[[str], None], precision: str = "fp32", dialect: str = "fused") -> str:
    """The folder of a model's bundle with random weights, exported where the cache does not hold it."""
    folder = cache_folder() / f"{model.id}-{precision}-{dialect}"
    if is_bundle(folder) and sound(folder):
        return str(folder)
    say(f"exporting {model.id} as {precision} {dialect}, with random weights of its true geometry (once, minutes;"
        f" kept in {folder})")  # fmt: skip
    export(random_source(model.geometry, model.id), folder, precision=precision, dialect=dialect)
    return str(folder)


def sound(folder: Path) -> bool:
    """Whether a kept bundle is whole and of today's schema; hashes are checked when it is measured."""
    try:
        load_bundle(str(folder), verify=False)
    except MerinoError:
        return False
    return True
