"""`export --precision auto`: the fastest weight format on a board in which a bundle reads a text nearly as well as with
float32 weights. What is written is the very bundle that was judged."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from merino_edge.bundles.files import is_bundle_alone
from merino_edge.export.calibration_text import check_text
from merino_edge.export.export import Exported, on_text, write_export
from merino_edge.export.request import PRECISIONS, ROUNDED, Target, check_calibration, needs_text
from merino_edge.export.settled import Settled, chosen_context, settled
from merino_edge.export.source import Source
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.storage.atomic import new_folder, parents_made, scratch_folder
from merino_edge.storage.faults import one_line
from merino_edge.text.perplexity import bundle_perplexity
from merino_runtime.errors import MerinoError

ALLOWED_RISE = {"int8": 0.005, "int4": 0.03}  # of the perplexity, over float32 weights with the same cache

Say = Callable[[str], None]


def export_fastest(
    source: Source, out: Path, board: DeviceProfile, target: Target, text: Path | None, say: Say, *,
    context: int | None = None, overwrite: bool = False, chat: bool = True, kv: str | None = None,
    calibration: Path | None = None,
) -> Exported:  # fmt: skip
    """Write the bundle `out` in the first format, in the order of predicted decode time, that keeps its bar on `text`.

    Each format is tried as it would be written: with the cache and the calibrated weights that were asked for. `say` is
    told in one line what became of it. Random weights mean nothing, so of these nothing is measured, and the first
    format that can be written is taken; where float32 is the fastest nothing is measured either, and the source's model
    is emptied. The other parameters are those of `export`. Raises MerinoError as `export` does, for all formats before
    one is tried, and where a text is missing or cannot be read.
    """
    settle = partial(
        settled, source, out, dialect=target.dialect, context=context, core=target.core, overwrite=overwrite,
        chat=chat, kv=kv,
    )  # fmt: skip
    cache = settle(precision="fp32", calibration=None).form.kv
    times = predicted_ms(source.arch, board, PRECISIONS[target.dialect], chosen_context(source, context), cache)
    order = sorted(times, key=lambda precision: times[precision])
    order = order[: order.index("fp32") + 1]  # no slower one is tried
    if order == ["fp32"]:  # and no text is read
        check_calibration("fp32", cache, calibration)
    formats = {
        each: settle(precision=each, calibration=calibration if cache or each in ROUNDED else None) for each in order
    }
    if order == ["fp32"]:
        return write_export(source, out, formats["fp32"], on_text(source, formats["fp32"]), last_use=True)
    if source.weights == "random":
        text = None
    elif text is None:
        raise MerinoError(f"{needs_text()}; by the time on {board.id} it would be {order[0]}")
    else:
        check_text(source, text, formats["fp32"].form.context, "Name a --precision")
    with parents_made(out), scratch_folder(out) as place:
        told = {each: f"{each}: {times[each]:.1f} ms predicted on {board.id}" for each in order}
        return placed(first_that_keeps(source, formats, text, place, told, say), out)


def first_that_keeps(
    source: Source, formats: Mapping[str, Settled], text: Path | None, place: Path, told: Mapping[str, str], say: Say
) -> Exported:
    """The first format's bundle that keeps its bar, in `place`; without a text, the first that can be written. `told`:
    of each format, how a line on it begins. The last of `formats` is float32."""
    found = on_text(source, next(iter(formats.values())))
    floats = write_export(source, place / "fp32", formats["fp32"], found)
    base = bundle_perplexity(floats.folder, text).perplexity if text else 1.0
    for precision in [each for each in formats if each != "fp32"]:
        try:
            made = write_export(source, place / precision, formats[precision], found)
        except MerinoError as error:  # such as blocks that do not divide a row
            say(f"{told[precision]}, refused: {one_line(error)}")
            continue
        if text is None:
            say(f"{told[precision]}: taken")
            return made
        rise, allowed = bundle_perplexity(made.folder, text).perplexity / base - 1, ALLOWED_RISE[precision]
        verdict = "taken" if rise <= allowed else "refused"
        say(f"{told[precision]}, perplexity {rise:+.2%}, {allowed:.1%} is allowed: {verdict}")
        if verdict == "taken":
            return made
        shutil.rmtree(made.folder)
    say(f"{told['fp32']}: taken")
    return floats


def placed(made: Exported, out: Path) -> Exported:
    """The bundle in the folder `out`. It lies beside, on the same disk."""
    with new_folder(out, is_bundle_alone) as folder:
        for file in made.folder.iterdir():
            file.rename(folder / file.name)
    return made._replace(folder=out, bundle=made.bundle._replace(folder=str(out)))


def predicted_ms(
    arch: Geometry, board: DeviceProfile, formats: Sequence[str], context: int, kv: str | None = None
) -> dict[str, float]:
    """Of a decode step at a full cache, in each format that CPUs have kernels for. `kv`: the format of the cache."""
    on_cpu = board.with_backend("onnxruntime")
    shapes = [InferenceShape(each, context, default_prompt(context), kv) for each in formats if each in CPU_FORMATS]
    return {shape.precision: cost_model(on_cpu, shape).predict(arch.operators).decode_ms for shape in shapes}
