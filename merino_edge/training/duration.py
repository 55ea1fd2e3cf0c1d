"""How many steps a training time allows, by timed steps of the model on this machine."""

import time
from typing import Any

import torch

from merino_edge.design.design_file import Training
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import build_model
from merino_edge.training import processes
from merino_edge.training.recipe import Recipe
from merino_runtime.errors import MerinoError

TIMED_STEPS = 2  # after a first one, which is slower
OTHER_SHARE = 0.15  # of a run, for the optimizer, evaluations and saved states
MOST_PASSES = 40  # over a text: more lower the loss of no decoder


def steps_within(text: Training, arch: Geometry, recipe: Recipe, accumulate: int) -> int:
    """Return the number of steps that take the training's hours; fewer if they pass over the text MOST_PASSES times.

    Raises MerinoError for several processes, since each would time its own.
    """
    assert text.hours is not None
    if processes.count() > 1:
        raise MerinoError("the design's training time is for one process: give --steps N with several")
    length, rows = recipe.length or arch.context, max(1, recipe.batch // accumulate)
    model: Any = build_model(arch)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    ids = torch.randint(arch.vocab, (rows, length), device=model.device)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        seconds.append(time.perf_counter() - start)
    steps = 3600 * text.hours * (1 - OTHER_SHARE) / (min(seconds[1:]) * accumulate)
    passes = MOST_PASSES * (text.tokens or float("inf")) / (recipe.batch * length)
    return max(1, round(min(steps, passes)))
