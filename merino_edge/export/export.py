"""The export of a source by one request. `--precision auto` chooses the fastest weight format on a board that keeps
the model's float32 answers, and writes the bundle that was measured."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from merino_edge.bundles.files import is_bundle_alone
from merino_edge.export.divergence import divergence_words, keeps
from merino_edge.export.mixed import eight_bits
from merino_edge.export.one_format import Calibration, Exported, calibrate, write_export
from merino_edge.export.request import (
    AUTO,
    MIXED,
    PRECISIONS,
    ROUNDED,
    ExportRequest,
    board_for_auto,
    check_calibration,
    in_float32,
    in_int4,
)
from merino_edge.export.resolved import ResolvedExport, resolve
from merino_edge.export.source import Source
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.storage.atomic import new_folder, parents_made, scratch_folder
from merino_edge.storage.faults import one_line
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

DEFAULTS = ExportRequest()

Say = Callable[[str], None]


def export(
    source: Source, out: Path, request: ExportRequest = DEFAULTS, *, last_use: bool = False,
    say: Say = lambda _: None,
) -> Exported:  # fmt: skip
    """Write the bundle `out`.

    `last_use`: the source's model is changed and then emptied, so that memory holds one copy of the weights at a time.
    `say` gets a line for each format that AUTO tries, and one on what MIXED chose. Raises MerinoError for a request
    that is not possible, for a chat template that raises, for weights that give no finite logits, and where the graph
    differs from torch; then nothing is written.
    """
    if request.precision == AUTO:
        return export_fastest(source, out, request, say)
    mixed = request.precision == MIXED
    resolved = resolve(in_int4(request) if mixed else request, source, out)
    calibration = calibrate(source, resolved)
    if mixed:
        resolved = resolved._replace(eight_bits=chosen_matrices(source, request, resolved, calibration, say))
    return write_export(source, out, resolved, calibration, last_use)


def chosen_matrices(
    source: Source, request: ExportRequest, resolved: ResolvedExport, calibration: Calibration, say: Say
) -> frozenset[str]:
    """The matrices of an int4 export that get 8 bits within the request's limits."""
    ms = (0.0, 0.0)
    if request.board and request.decode_ms is not None:
        latencies = predicted_ms(source.arch, request.board, ("int4", "int8"), resolved.form.context, resolved.form.kv)
        ms = latencies["int4"], latencies["int8"]
    most_bytes = None if request.file_mb is None else request.file_mb * MB
    return eight_bits(source, resolved.form, calibration.answers, most_bytes, request.decode_ms, ms, say)


def export_fastest(source: Source, out: Path, request: ExportRequest, say: Say) -> Exported:
    """Write the bundle `out` in the first format, in the order of predicted decode latency on the request's board, that
    loses no more than MOST_LOST of the model's answers.

    Each format is tried as it would be written: with the cache and the calibration that were requested. The answers of
    random weights mean nothing, so with these the first format that can be written is taken; where float32 is the
    fastest no format is compared, and the source's model is emptied. Raises MerinoError as `export` does, for all
    formats before one is tried.
    """
    board = board_for_auto(request)
    form = resolve(in_float32(request), source, out).form
    times = predicted_ms(source.arch, board, PRECISIONS, form.context, form.kv)
    order = sorted(times, key=lambda precision: times[precision])
    order = order[: order.index("fp32") + 1]  # no slower one is tried
    if order == ["fp32"]:
        check_calibration("fp32", form.kv, request.calibration)
    formats = {each: resolve(in_format(each, request, form.kv), source, out) for each in order}
    if order == ["fp32"]:
        return write_export(source, out, formats["fp32"], calibrate(source, formats["fp32"]), last_use=True)
    if source.weights == "trained" and source.tokenizer is None:
        raise MerinoError(
            f"{source.name} has no tokenizer, so --precision auto cannot compare its answers: name a --precision; by"
            f" predicted latency on {board.id} it would be {order[0]}"
        )
    with parents_made(out), scratch_folder(out) as place:
        begins = {each: f"{each}: {times[each]:.1f} ms predicted on {board.id}" for each in order}
        return placed(first_that_keeps(source, formats, place, begins, say), out)


def in_format(precision: str, request: ExportRequest, kv: str | None) -> ExportRequest:
    """The request in one of the formats that AUTO tries, without calibration text where nothing is quantized."""
    calibrates = kv is not None or precision in ROUNDED
    return request._replace(precision=precision, calibration=request.calibration if calibrates else None)


def first_that_keeps(
    source: Source, formats: Mapping[str, ResolvedExport], place: Path, begins: Mapping[str, str], say: Say
) -> Exported:
    """The bundle in `place` of the first format that keeps the model's answers; for random weights, of the first format
    that can be written. `begins`: the start of each format's report line. The last of `formats` is float32, which is
    not compared."""
    calibration = calibrate(source, next(iter(formats.values())))
    for precision in [each for each in formats if each != "fp32"]:
        try:
            made = write_export(source, place / precision, formats[precision], calibration)
        except MerinoError as error:  # such as groups that do not divide a row
            say(f"{begins[precision]}, refused: {one_line(error)}")
            continue
        if made.divergence is None:
            say(f"{begins[precision]}: taken")
            return made
        verdict = "taken" if keeps(made.divergence) else "refused"
        say(f"{begins[precision]}, {divergence_words(made.divergence)}: {verdict}")
        if verdict == "taken":
            return made
        shutil.rmtree(made.folder)
    floats = write_export(source, place / "fp32", formats["fp32"], calibration)
    say(f"{begins['fp32']}: taken")
    return floats


def placed(made: Exported, out: Path) -> Exported:
    """Moves the bundle into the folder `out`, which is on the same disk."""
    with new_folder(out, is_bundle_alone) as folder:
        for file in made.folder.iterdir():
            file.rename(folder / file.name)
    return made._replace(folder=out, bundle=made.bundle._replace(folder=str(out)))


def predicted_ms(
    arch: Geometry, board: DeviceProfile, formats: Sequence[str], context: int, kv: str | None = None
) -> dict[str, float]:
    """Predicted latency of a decode step at a full cache, in each format that CPUs have kernels for. `kv`: the format
    of the cache."""
    on_cpu = board.with_backend("onnxruntime")
    shapes = [InferenceShape(each, context, default_prompt(context), kv) for each in formats if each in CPU_FORMATS]
    return {shape.precision: cost_model(on_cpu, shape).predict(arch.operators).decode_ms for shape in shapes}
