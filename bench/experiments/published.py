"""Predictions from the boards' profiles against speeds that others published for those boards.

    python bench/experiments/published.py -o bench/results/published.json docs/predictions.md

The latency model predicts each row of `device_profiles/published`, with the row's bytes per weight and the cycles of
llama.cpp's kernels instead of this project's, at the row's threads. So the rows test what predictions rest on:
bandwidth, its dependence on threads, cycles per weight, overhead. Half of the models of a board judge the predictions;
no profile was set from them. The page's table is rewritten between its two marks.

A row is one speed of one phase. `use` is empty for a row that judges predictions, `fitted` for one that the profile was
set from, and `left out` for one whose setting is partly unknown; `note` says why. `bytes` is the size of the weights in
the file, `twice` says that the file holds a tied embedding twice, and `read_bytes` replaces both if the source counts
what a step reads. `tokens` is the length of the prompt, or of the answer.
"""

import argparse
import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator
from write_record import table, write_record

from merino_edge.benchmarking.engines import matrix_weights
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import Operator
from merino_edge.families.registry import FAMILIES
from merino_edge.families.zoo import exportable_models
from merino_edge.prediction.default_coefficients import CACHED_SHARE, FAST_INT, estimated
from merino_edge.prediction.latency import MEMORY, Run, ThreadCoefficients, by_threads, latency_table
from merino_edge.prediction.shape import InferenceShape
from merino_edge.prediction.tensorrt_costs import tensorrt_costs
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import load_profile
from merino_edge.records.schema import Facts

FOLDER = Path(__file__).resolve().parents[2] / "device_profiles" / "published"
SHORT = 128  # tokens, if the source does not state a length
# Bits per weight of files whose size the source does not state.
BITS = {"F16": 16, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_K_M": 4.85, "Q4_0": 4.5, "IQ4_NL": 4.5, "q4f16_ft": 4}
# Models that are not in the catalog, by name.
GEOMETRIES = tomllib.loads(Path(__file__).with_name("geometries.toml").read_text())
BEGIN, END = "<!-- published: begin -->", "<!-- published: end -->"
CLAIM = "Speeds that others published for the boards, as the latency model predicts them"
COMMAND = "python bench/experiments/published.py -o bench/results/published.json docs/predictions.md"
CLOSE = 0.25
FP32_BYTES, FP16_BYTES = 4, 2
# Cycles per weight of llama.cpp's kernels without dotprod, of up to five bits and of more: 0.87 instructions counted
# for q4_0 and 0.75 for q8_0, in cycles by llvm-mca's models of the cores. F16 takes this project's float32 cycles.
CYCLES = {"Cortex-A53": (1.08, 0.88), "Cortex-A57": (0.36, 0.32), "Cortex-A72": (0.36, 0.32)}
# With dotprod llama.cpp's kernels were not counted. Row by row: the same instructions, three in a cycle. Weights that
# are repacked into tiles, of up to five bits and of more: those of this project's loops without dotprod.
ROW_BY_ROW, REPACKED = 0.87 / 3, (0.11, 0.14)
# The month since which llama.cpp repacks a format for dotprod (its pull requests 9921, 17494, 18096, 19356, 19360).
TILED_SINCE = {"Q4_0": "2024-11", "IQ4_NL": "2024-12", "Q4_K_M": "2025-12", "Q8_0": "2025-12", "Q5_K_M": "2026-02",
               "Q6_K": "2026-02"}  # fmt: skip
SUPER_BLOCK = 256  # K-quants need such rows; shorter ones are stored as Q5_0 or Q8_0


class Source(Facts):
    """Where rows were published, and what they have in common."""

    url: str
    date: str
    engine: str
    version: str
    setting: str


class Row(Facts):
    """One published speed; the module's docstring defines the fields."""

    source: str
    model: str
    format: str
    bytes: Annotated[int, Field(gt=0)] | None = None
    read_bytes: Annotated[int, Field(gt=0)] | None = None
    twice: bool = False
    threads: Annotated[int, Field(gt=0)] | None = None
    backend: Literal["cpu", "gpu"] = "cpu"
    phase: Literal["decode", "prefill"]
    tokens: Annotated[int, Field(gt=0)] | None = None
    tok_s: Annotated[float, Field(gt=0, strict=False)]
    memory_clock: float = 1.0
    use: Literal["", "fitted", "left out"] = ""
    note: str = ""

    @model_validator(mode="after")
    def _setting_is_known(self) -> "Row":
        known = (self.threads or self.backend == "gpu") and self.model in {*exportable_models(), *GEOMETRIES}
        if self.use != "left out" and not (known and (self.bytes or self.read_bytes or self.format in BITS)):
            raise ValueError("a row of unknown threads, format or geometry is left out")
        if self.use == "left out" and not self.note:
            raise ValueError("a row that is left out says why")
        return self


class Board(Facts):
    schema_version: Annotated[int, Field(alias="schema", ge=1, le=1)]
    board: str
    rows: Annotated[tuple[Row, ...], Field(strict=False)]
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _has_sources(self) -> "Board":
        if strangers := {row.source for row in self.rows} ^ set(self.sources):
            raise ValueError(f"sources and rows differ in {sorted(strangers)}")
        return self


def read_boards() -> list[Board]:
    """Return the boards with published speeds, by name."""
    return [Board.model_validate(tomllib.loads(path.read_text())) for path in sorted(FOLDER.glob("*.toml"))]


@cache
def geometry(model: str) -> Geometry:
    """Return the geometry of a row's model."""
    if model in GEOMETRIES:
        known = GEOMETRIES[model]
        return FAMILIES[known["family"]].geometry.model_validate_json(json.dumps(known["geometry"]))
    return exportable_models()[model].geometry


Key = tuple[str, str, str]  # board, backend, model


def halves(boards: list[Board]) -> tuple[set[Key], set[Key]]:
    """Split the models of each board and backend into those that profiles are fitted to and those that judge them.

    A model with a row that the profile was set from is fitted to. Then the models, those with most rows first, go to
    the half that has fewer rows so far, first to the fit.
    """
    fit, judge = set[Key](), set[Key]()
    for board in boards:
        used = [row for row in board.rows if row.use != "left out"]
        for backend in ("cpu", "gpu"):
            rows = Counter(row.model for row in used if row.backend == backend)
            set_from = {row.model for row in used if row.backend == backend and row.use == "fitted"}
            sizes = {True: 0, False: 0}  # by whether the half is fitted to
            for model in sorted(rows, key=lambda name: (name not in set_from, -rows[name], name)):
                fitted = model in set_from or sizes[True] <= sizes[False]
                sizes[fitted] += rows[model]
                (fit if fitted else judge).add((board.board, backend, model))
    return fit, judge


class Compared(NamedTuple):
    """A row with the speed that the profile predicts. `judges`: whether its model is in the judging half."""

    board: str
    row: Row
    judges: bool
    predicted: float

    @property
    def error(self) -> float:
        """Return log(predicted / published)."""
        return math.log(self.predicted / self.row.tok_s)


def compare(boards: Iterable[Board]) -> list[Compared]:
    """Return all rows that are not left out."""
    boards = list(boards)
    _, judging = halves(boards)
    compared = []
    for board in boards:
        profile = load_profile(board.board)
        for row in sorted((row for row in board.rows if row.use != "left out"), key=lambda row: row.backend):
            predicted = tok_s(profile, row, board.sources[row.source].date)
            compared.append(Compared(board.board, row, (board.board, row.backend, row.model) in judging, predicted))
    return compared


def tok_s(profile: DeviceProfile, row: Row, date: str) -> float:
    """Return the predicted tokens per second of a row of this date."""
    operators = geometry(row.model).operators
    tokens = row.tokens or SHORT
    run = (tokens, 0) if row.phase == "prefill" else (1, tokens // 2)
    run_ms = gpu_ms if row.backend == "gpu" else cpu_ms
    return 1e3 * run[0] / run_ms(profile, row, date, operators, run)


def cpu_ms(profile: DeviceProfile, row: Row, date: str, operators: Sequence[Operator], run: Run) -> float:
    """Return the ms of a run by the model's float32 format, whose 4 bytes per weight get the times of the row's."""
    threads, dotprod, clock = row.threads or 0, "dotprod" in profile.isa, profile.cpu.clock_ghz
    assert clock is not None
    at, tiled = on_threads(profile, threads), is_tiled(profile, row, date)
    kernel_ms = cycles(profile, row, tiled) * 1e3 / (clock.value * threads)  # per 10^9 weights, as all below
    mac_ms = FAST_INT * at.us_per_unit["fp32.mac_ms_g"] if tiled else kernel_ms
    memory_ms = at.us_per_unit[MEMORY]
    gb = read_bytes(row, operators) / matrix_weights(operators, "linear", "head")
    read_ms = gb * memory_ms / (1 - CACHED_SHARE)
    # As in default_coefficients: the longer of reading and computing with dotprod, their sum without it.
    step_ms = max(read_ms, kernel_ms) if dotprod else read_ms + kernel_ms
    figures = dict(at.us_per_unit) | {
        "fp32.load_ms_gb": (step_ms - mac_ms) / FP32_BYTES - memory_ms, "fp32.mac_ms_g": mac_ms,
    }  # fmt: skip
    return float(latency_table(operators, "fp32", [run], "fused", [replace(at, us_per_unit=figures)]).sum())


@cache
def on_threads(profile: DeviceProfile, threads: int) -> ThreadCoefficients:
    """Return the board's estimated coefficients at any thread count."""
    cores = profile.cpu.cores.model_copy(update={"value": threads})
    limited = profile.model_copy(update={"cpu": profile.cpu.model_copy(update={"cores": cores})})
    return by_threads(estimated(limited))[threads]


def is_tiled(profile: DeviceProfile, row: Row, date: str) -> bool:
    """Return whether llama.cpp of this date multiplies by tiles of these weights on this core."""
    whole = "_K" not in row.format or geometry(row.model).layer_shapes[0].width % SUPER_BLOCK == 0
    return "dotprod" in profile.isa and whole and date >= TILED_SINCE.get(row.format, "never")


def cycles(profile: DeviceProfile, row: Row, tiled: bool) -> float:
    """Return the cycles of one core per weight in a decode step, without reading it."""
    own, eight = profile.cpu.cycles_per_weight, row.format in ("Q6_K", "Q8_0")
    if row.format == "F16" and own and own.matmul is not None:
        return own.matmul
    if profile.cpu.core in CYCLES:
        return CYCLES[profile.cpu.core][eight]
    return REPACKED[eight] if tiled else ROW_BY_ROW


def read_bytes(row: Row, operators: Sequence[Operator]) -> float:
    """Return the bytes of weights that one decode step reads: the file's, without an embedding beside the head."""
    if row.read_bytes or not row.bytes:
        return row.read_bytes or matrix_weights(operators, "linear", "head") * BITS[row.format] / 8
    tied = not all(op.own for op in operators if op.kind == "head")
    beside = sum(op.matrix for op in operators if op.kind == "embed") if row.twice or not tied else 0
    return row.bytes - beside * BITS.get(row.format, 0) / 8


def gpu_ms(profile: DeviceProfile, row: Row, _date: str, operators: Sequence[Operator], run: Run) -> float:
    """Return the ms of a run by the costs of TensorRT in fp16, with the row's bytes instead of two per weight."""
    speed = profile.performance.tensorrt
    assert speed is not None
    gb_s = speed.read_gb_s.value * row.memory_clock
    speed = speed.model_copy(update={"read_gb_s": speed.read_gb_s.model_copy(update={"value": gb_s})})
    performance = profile.performance.model_copy(update={"tensorrt": speed})
    shape = InferenceShape("fp16", max(2, sum(run)), run[0])
    costs = tensorrt_costs(profile.model_copy(update={"performance": performance}), shape)
    decode_ms, prefill_ms = (float(table.sum()) for table in costs.latency_tables(operators, prefill=True))
    if row.phase == "prefill":
        return prefill_ms
    fewer = FP16_BYTES * matrix_weights(operators, "linear", "head") - read_bytes(row, operators)
    return decode_ms - fewer / gb_s / 1e6


def summary(errors: Iterable[float]) -> dict[str, float]:
    """Return the median of absolute errors of speeds, the 80th percentile, and the share within CLOSE."""
    off = sorted(abs(math.expm1(error)) for error in errors)
    return {
        "median": round(median(off), 3), "percentile_80": round(off[math.ceil(0.8 * len(off)) - 1], 3),
        "within_25": round(mean(value <= CLOSE for value in off), 3),
    }  # fmt: skip


def summaries(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return the errors per board, backend and phase, of all rows by the profile as it is."""
    found = []
    for key in sorted({(one.board, one.row.backend, one.row.phase) for one in compared}):
        errors = [one.error for one in compared if (one.board, one.row.backend, one.row.phase) == key]
        names = dict(zip(("board", "backend", "phase"), key, strict=True))
        found.append({**names, "rows": len(errors), **summary(errors)})
    return found


def confirmed(compared: Sequence[Compared], board: str) -> dict[str, float]:
    """Return how well the judging half's decode speeds on the CPU are predicted: of one board, or of "all"."""
    errors = [  # of speeds; in milliseconds these are measured / predicted
        one.error for one in compared
        if one.judges and (one.row.backend, one.row.phase) == ("cpu", "decode") and board in (one.board, "all")
    ]  # fmt: skip
    spread = stdev(errors) * math.sqrt(1 + 1 / len(errors))
    return {"rows": len(errors), **summary(errors), "center": round(mean(errors), 3), "scale": round(spread, 3)}


TITLES = ("board", "backend, phase", "rows", "median error", "within 25 %", "80 % are within")


def cells(found: dict[str, Any]) -> list[str]:
    shares = (f"{found[name]:.0%}" for name in ("median", "within_25", "percentile_80"))
    return [found["board"], f"{found['backend']}, {found['phase']}", str(found["rows"]), *shares]


def with_table(text: str, found: Iterable[dict[str, Any]]) -> str:
    """Return the page with the table of these summaries between its marks."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table(TITLES, map(cells, found))}\n{END}{rest.split(END)[1]}"


def record_row(one: Compared) -> list[Any]:
    row = one.row
    return [
        one.board, row.source, row.model, row.format, row.threads or row.backend, row.phase, row.tok_s,
        round(one.predicted, 2), "judge" if one.judges else "-",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the record")
    options = parser.parse_args()
    boards = read_boards()
    compared = compare(boards)
    found = summaries(compared)
    options.page.write_text(with_table(options.page.read_text(), found))
    write_record(options.output, {
        "machine": "any: no timing",
        "notes": "rows: board, source, model, format, threads or gpu, phase, published, predicted, whether it judges",
        "collected": sum(len(board.rows) for board in boards), "compared": len(compared),
        "decode_on_cpus": {name: confirmed(compared, name)
                           for name in ("all", "jetson-nano", "raspberry-pi-4", "raspberry-pi-5")},
        "summaries": found, "rows": [record_row(one) for one in compared],
    }, CLAIM, COMMAND)  # fmt: skip
    print(table(TITLES, map(cells, found)))


if __name__ == "__main__":
    main()
