"""Recipes by name, of presets.toml. Loads no torch."""

import tomllib
from importlib.resources import files
from typing import Any, NamedTuple

from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import params
from merino_edge.training.recipe import Recipe
from merino_runtime.errors import MerinoError

FILE = "presets.toml"
FLOPS_PER_TOKEN = 6  # and weight: forward and backward pass


class Preset(NamedTuple):
    """`accumulate`: parts of a batch; `recipe`: fields of a Recipe."""

    about: str
    needs: str
    accumulate: int
    recipe: dict[str, Any]


def presets() -> dict[str, Preset]:
    content = tomllib.loads((files("merino_edge.training") / FILE).read_text(encoding="utf-8"))
    return {name: Preset(**given) for name, given in content.items()}


def preset(name: str) -> Preset:
    known = presets()
    if name not in known:
        choices = "; ".join(f"{each}: {entry.about}" for each, entry in known.items())
        raise MerinoError(f"--preset {name} is not known. Choose from: {choices}")
    return known[name]


def needs_words(name: str, chosen: Preset, arch: Geometry, recipe: Recipe) -> str:
    """A line with the needs of a run by the preset."""
    tokens = recipe.steps * recipe.batch * (recipe.length or arch.context)
    flops = FLOPS_PER_TOKEN * params(arch.operators) * tokens
    return (
        f"preset {name}: {chosen.about}. It needs {chosen.needs}: {tokens:,} tokens in {recipe.steps:,} steps of"
        f" {recipe.batch} rows, {flops:.1e} FLOPs for this model"
    )
