"""The fastest weight format on a board whose bundle reads a text nearly as well as the float32 one."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from merino_edge.evaluation.perplexity import bundle_perplexity
from merino_edge.export.export import chosen_context, export
from merino_edge.export.request import PRECISIONS, Target
from merino_edge.export.source import Source
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

ALLOWED_RISE = {"fp32": 0.0, "int8": 0.005, "int4": 0.03}  # of the perplexity, over float32's

Say = Callable[[str], None]


class Tried(NamedTuple):
    """`rise`: of the perplexity over float32's; None where nothing was measured."""

    precision: str
    decode_ms: float
    rise: float | None


def fastest_format(
    source: Source, board: DeviceProfile, target: Target, context: int | None, text: Path | None, say: Say
) -> list[Tried]:
    """The formats in the order of predicted decode time, up to the first that keeps its bar, which is the chosen one.

    Random weights mean nothing, so of these nothing is measured. Raises MerinoError where a text is missing, or cannot
    be read.
    """
    longest = chosen_context(source, context)
    times = predicted_ms(source.arch, board, PRECISIONS[target.dialect], longest)
    order = sorted(times, key=lambda precision: times[precision])
    if source.weights == "random":
        return [Tried(order[0], times[order[0]], None)]
    if text is None:
        raise MerinoError(
            "--precision auto measures what each format costs in perplexity: give a text that the model was not trained"
            f" on with --text FILE, or name a format; by the time on {board.id} it would be {order[0]}"
        )
    with tempfile.TemporaryDirectory() as folder:
        base, found = None, list[Tried]()
        for precision in order:
            if precision != "fp32":
                base = base or perplexity_of("fp32", source, Path(folder), target, context, text)
                rise = perplexity_of(precision, source, Path(folder), target, context, text) / base - 1
            else:
                rise = 0.0
            found.append(Tried(precision, times[precision], rise))
            say(f"{precision}: {times[precision]:.1f} ms predicted on {board.id}, perplexity {rise:+.2%}")
            if rise <= ALLOWED_RISE[precision]:
                break
    return found


def predicted_ms(
    arch: Geometry, board: DeviceProfile, formats: Sequence[str], context: int
) -> dict[str, float]:
    """Of a decode step at a full cache, in each format that CPUs have kernels for."""
    on_cpu = board.with_backend("onnxruntime")
    shapes = [InferenceShape(each, context, default_prompt(context)) for each in formats if each in CPU_FORMATS]
    return {shape.precision: cost_model(on_cpu, shape).predict(arch.operators).decode_ms for shape in shapes}


def perplexity_of(
    precision: str, source: Source, folder: Path, target: Target, context: int | None, text: Path
) -> float:
    out = folder / precision
    export(source, out, dialect=target.dialect, core=target.core, precision=precision, context=context)
    return bundle_perplexity(out, text).perplexity
