"""Baselines by name: OPT's bundle, exported once and kept in the user's cache folder."""

import os
from collections.abc import Callable
from pathlib import Path

from merino_edge.export.export import export, is_bundle
from merino_edge.export.source import OPT_NAMES, load_source
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merino_edge"


def baseline_bundle(name: str, say: Callable[[str], None]) -> str:
    """The folder of a baseline: a bundle's own folder, or that of a name such as `opt-350m` (random weights)."""
    if name not in OPT_NAMES:
        return name
    folder = cache_folder() / f"{name}-fp32-fused"
    if is_bundle(folder) and sound(folder):
        return str(folder)
    say(f"exporting {name} with random weights of its true geometry (once, 1.3 GB, kept in {folder})")
    export(load_source(name), folder)
    return str(folder)


def sound(folder: Path) -> bool:
    """Whether a kept bundle is whole and of today's schema; hashes are checked when it is measured."""
    try:
        load_bundle(str(folder), verify=False)
    except MerinoError:
        return False
    return True
