"""What fewer KV heads, and a quantized cache, bring to designs at equal budget, by the boards' estimates.

    python bench/experiments/grouped_heads.py -o bench/results/grouped-heads.json

For each board, backend and format that is fast there: the design of most entropy whose decode step takes 50 ms behind
1,024 cached tokens, with as many KV heads as query heads, with any number of them, and with four at least; and the
uniform decoder of most weights for the same, also over a cache of int8 and of int4 where the board's ONNX Runtime takes
one. No time is measured.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from write_record import write_record

from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.designer import design
from merino_edge.design.score import MERINO
from merino_edge.design.space import FULL, GROUPED, Space
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import params
from merino_edge.prediction.cost_model import CostModel, cost_model
from merino_edge.prediction.formats import fast_formats, has_cache
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import list_profiles
from merino_runtime.bundle import QUANTIZED_CACHES
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

DECODE_MS, CONTEXT, PROMPT, VOCAB = 50.0, 1024, 512, 50257
HEADS = {"full": FULL, "any": GROUPED, "four or more": (4, 8, 16, 32, None)}


def body(arch: Architecture) -> int:
    """Parameters without the embedding."""
    return params(arch.operators) - arch.vocab * arch.embed_width


def step_weights(arch: Architecture) -> int:
    """Weights that a step multiplies by, without the head's: shared ones at each use."""
    return sum(op.macs for op in arch.operators if op.kind == "linear")


def designed(model: CostModel, limits: dict[str, float], heads: tuple[int | None, ...]) -> dict[str, Any]:
    shape = model.shape
    chosen = design(
        model.profile, limits, space=Space(vocab=VOCAB, kv_heads=heads), context=shape.context, prompt=shape.prompt,
        precision=shape.precision, scoring=MERINO,
    )  # fmt: skip
    arch, cost = chosen.architecture, chosen.predicted
    return {
        "shape": arch.shape(), "head_size": arch.head_size, "entropy": chosen.entropy, "gap": chosen.solver.gap,
        "seconds": chosen.solver.seconds, "params": cost.params, "body": body(arch),
        "step_weights": step_weights(arch), "kv_mb": cost.kv_bytes / MB,
        "memory_mb": cost.memory_mb, "decode_ms": cost.decode_ms, "prefill_ms": cost.prefill_ms,
    }  # fmt: skip


def uniform(model: CostModel, limits: dict[str, float], kv_heads: int | None) -> dict[str, Any]:
    """Of one width and FFN ratio 4, the one of most weights within the limits on decode time and memory."""
    fitting = []
    for width in range(128, 1025, 64):
        if kv_heads and width // 64 % kv_heads:
            continue
        for depth in range(1, 65):
            block = {"width": width, "ffn_ratio": 4.0, "depth": depth, "kv_heads": kv_heads}
            arch = Architecture.model_validate({"blocks": [block], "vocab": VOCAB, "context": model.shape.context})
            cost = model.predict(arch.operators)
            if cost.decode_ms > limits["decode_ms"] or cost.memory_mb > limits["memory_mb"]:
                break
            fitting.append(arch)
    best = max(fitting, key=body)
    return {"shape": best.shape(), "body": body(best), "params": params(best.operators)}


def uniform_by_heads(model: CostModel, limits: dict[str, float]) -> dict[str, Any]:
    return {str(heads or "full"): uniform(model, limits, heads) for heads in (None, 1, 2, 4)}


def board_rows(profile: DeviceProfile) -> list[dict[str, Any]]:
    limits = with_board_defaults({"decode_ms": DECODE_MS}, profile)
    rows = []
    for precision in fast_formats(profile):
        model = cost_model(profile, InferenceShape(precision, CONTEXT, PROMPT))
        row: dict[str, Any] = {"board": profile.id, "backend": profile.backend, "precision": precision}
        try:
            row["designs"] = {name: designed(model, limits, heads) for name, heads in HEADS.items()}
            row["uniform"] = uniform_by_heads(model, limits)
            row["uniform_over"] = {
                kv: uniform_by_heads(cost_model(profile, InferenceShape(precision, CONTEXT, PROMPT, kv)), limits)
                for kv in QUANTIZED_CACHES if has_cache(profile, kv)
            }  # fmt: skip
        except MerinoError as error:
            row["none"] = str(error)
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", type=Path, required=True)
    out = parser.parse_args().o
    boards = [board.with_backend(name) for board in list_profiles() for name in board.backends]
    rows = [row for board in boards for row in board_rows(board)]
    budget = {"decode_ms": DECODE_MS, "context": CONTEXT, "prompt": PROMPT, "vocab": VOCAB}
    write_record(out, {"kind": "predicted", "budget": budget, "rows": rows})


if __name__ == "__main__":
    main()
