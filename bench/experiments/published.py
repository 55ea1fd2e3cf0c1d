"""Predictions from the boards' estimated figures against speeds that others published for those boards.

    python bench/experiments/published.py docs/predictions.md

Rewrites the table between the file's two marks. The published figures are llama.cpp's but for one (Q4_0, Q4_K_M: about
4.5 bits a weight); the predictions are for the fastest format of ONNX Runtime's own kernels: int4 with dotprod, int8
without. So engines differ, and the bar is a factor of 1.5. Speeds of this project's kernels are published nowhere. A
speed of a GPU is set beside the prediction for TensorRT in fp16. Its format is unknown and its power mode differs, so
the bar is a factor of 2.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from write_record import table

from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import core_of_board
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import load_profile

BEGIN, END = "<!-- published: begin -->", "<!-- published: end -->"
CACHED, PROMPT = 128, 128  # the sources do not say
FACTOR, GPU_FACTOR = 1.5, 2.0
TITLES = (
    "board", "model", "backend, threads", "phase", "published tok/s", "predicted", "predicted / published", "note",
)  # fmt: skip


class Published(NamedTuple):
    board: str
    model: str  # of the catalog
    threads: int | None  # None: not published; the prediction takes the best
    what: str  # decode or prefill
    tok_s: float
    note: str = ""
    gpu: bool = False

    @property
    def how(self) -> str:
        return self.backend if self.gpu else f"{self.backend}, {self.threads or 'not stated'}"

    @property
    def backend(self) -> str:
        return "tensorrt" if self.gpu else "onnxruntime"

    @property
    def factor(self) -> float:
        return GPU_FACTOR if self.gpu else FACTOR


# github.com/hybridgroup/yzma, benchmarks/linux.md, September 2026
SHORT = "Q2_K in its name, most matrices in more bits; 30 tokens, prompt included"
ROWS = (
    *(Published("raspberry-pi-5", "Qwen2.5-0.5B", count, "decode", speed, "Q4_0")
      for count, speed in ((1, 32.3), (2, 34.2), (4, 28.9))),
    Published("raspberry-pi-5", "Qwen2.5-0.5B", 1, "prefill", 106, "Q4_0"),
    Published("raspberry-pi-5", "Qwen2.5-0.5B", 4, "prefill", 327, "Q4_0"),
    Published("jetson-nano", "Qwen3-0.6B", None, "decode", 7.7, "Q4_K_M"),
    Published("jetson-nano", "Qwen3-0.6B", None, "prefill", 37.7, "Q4_K_M"),
    Published("jetson-orin-nano", "SmolLM-135M", None, "decode", 84.2, f"{SHORT}; Super mode"),
    Published(
        "jetson-orin-nano", "SmolLM2-135M", None, "decode", 165, "25 W mode, all layers on the GPU, format not stated",
        gpu=True,
    ),
    Published("raspberry-pi-4", "SmolLM-135M", None, "decode", 28.8, SHORT),
    Published("raspberry-pi-zero-2w", "SmolLM-360M", None, "decode", 2.6, "Q4_K_M; rustllm, one author's engine"),
)  # fmt: skip


def predicted_tok_s(row: Published) -> float:
    """In the format that ONNX Runtime's own kernels are fastest in: on a CPU with dot products of 8 bits int4, without
    them int8."""
    profile = load_profile(row.board).with_backend(row.backend)
    return speed_in(profile, row, "fp16" if row.gpu else "int8" if core_of_board(profile) == "no-dotprod" else "int4")


def speed_in(profile: DeviceProfile, row: Published, precision: str) -> float:
    # llama.cpp's head has few bits too, a bundle's has 8 in int4.
    operators = [
        replace(op, kind="linear", final=True) if op.kind == "head" and precision == "int4" else op
        for op in model(row.model.lower()).geometry.operators
    ]
    each = cost_model(profile, InferenceShape(precision, CACHED, PROMPT)).predict_each(operators)
    single = [cost for cost in each if cost.decode_threads == cost.prefill_threads]
    if row.threads:
        single = [cost for cost in single if cost.decode_threads == row.threads]
    if row.what == "decode":
        return 1e3 / min(cost.decode_ms for cost in single)
    return 1e3 * PROMPT / min(cost.prefill_ms for cost in single)


def cells(row: Published) -> list[str]:
    predicted = predicted_tok_s(row)
    ratio = predicted / row.tok_s
    verdict = "" if 1 / row.factor <= ratio <= row.factor else f"beyond a factor of {row.factor:g}"
    note = "; ".join(part for part in (row.note, verdict) if part)
    return [row.board, row.model, row.how, row.what, f"{row.tok_s:g}", f"{predicted:.1f}", f"{ratio:.2f}", note]


def with_table(text: str) -> str:
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table(TITLES, map(cells, ROWS))}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))
