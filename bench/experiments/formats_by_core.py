"""What int8 and int4 without dotprod bring to a design, by the boards' estimates: no time is measured.

    python bench/experiments/formats_by_core.py -o FILE

For each Arm board's CPU: the design of most entropy for its default budget in float32 and in the format of fewest ms, a
uniform decoder for the same, and how much faster than OPT-350M in the same format a design of fewer parameters decodes.
All have as many heads of keys as of queries (`grouped_heads.py` has fewer).
"""

import argparse
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from write_record import write_record

from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.designer import design
from merino_edge.design.space import FULL, Space
from merino_edge.families.designed import Architecture
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import params
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import fast_formats
from merino_edge.prediction.shape import InferenceShape, default_lengths
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import list_profiles

VOCAB, FEWER, TIMES = 50257, 5.5, 4.9  # of the designs; OPT-350M's parameters and decode time over ours


def body(geometry: Geometry) -> int:
    """Parameters without the embedding."""
    return params(geometry.operators) - geometry.vocab * geometry.embed_width


def within_budget(profile: DeviceProfile, precision: str, lengths: tuple[int, int]) -> dict[str, Any]:
    limits = with_board_defaults({}, profile)
    found = design(
        profile, limits, space=Space(kv_heads=FULL), context=lengths[0], prompt=lengths[1], precision=precision
    )  # fmt: skip
    return {
        "precision": precision, "shape": found.architecture.shape(), "params": found.predicted.params,
        "body": body(found.architecture), "decode_ms": found.predicted.decode_ms,
        "uniform_body": body(uniform(profile, precision, lengths, limits)),
    }  # fmt: skip


def uniform(
    profile: DeviceProfile, precision: str, lengths: tuple[int, int], limits: dict[str, float]
) -> Architecture:
    """Of one width and FFN ratio 4, the one of most weights within the limits on decode time and memory."""
    costs = cost_model(profile, InferenceShape(precision, *lengths))
    found = [(arch, costs.predict(arch.operators)) for arch in uniform_decoders(lengths[0])]
    most_ms, most_mb = limits["decode_ms"], limits["memory_mb"]
    return max((arch for arch, cost in found if cost.decode_ms <= most_ms and cost.memory_mb <= most_mb), key=body)


@lru_cache
def uniform_decoders(context: int) -> list[Architecture]:
    blocks = [
        {"width": width, "ffn_ratio": 4.0, "depth": depth, "shared": False}
        for width in range(128, 1025, 64) for depth in range(1, 25)
    ]  # fmt: skip
    return [Architecture.model_validate({"blocks": [each], "vocab": VOCAB, "context": context}) for each in blocks]


def against_opt(profile: DeviceProfile, precision: str, lengths: tuple[int, int]) -> dict[str, Any]:
    """The fastest uniform decoder of about FEWER times fewer parameters, and the design of TIMES less decode time."""
    reference = model("opt-350m").geometry
    costs, fewer = cost_model(profile, InferenceShape(precision, *lengths)), params(reference.operators) / FEWER
    theirs = costs.predict(reference.operators).decode_ms
    near = [arch for arch in uniform_decoders(lengths[0]) if 0.95 * fewer <= params(arch.operators) <= fewer]
    best = min(near, key=lambda arch: costs.predict(arch.operators).decode_ms)
    quick = design(
        profile, {"decode_ms": theirs / TIMES}, space=Space(kv_heads=FULL), context=lengths[0], prompt=lengths[1],
        precision=precision,
    )  # fmt: skip
    return {
        "precision": precision, "opt_350m_ms": theirs, "shape": best.shape(), "params": params(best.operators),
        "ratio": theirs / costs.predict(best.operators).decode_ms,
        "params_at_ratio": quick.predicted.params,
        "fewer_at_ratio": params(reference.operators) / quick.predicted.params,
    }  # fmt: skip


def board_row(profile: DeviceProfile) -> dict[str, Any]:
    lengths = default_lengths(profile, None, None)
    times = {
        precision: cost_model(profile, InferenceShape(precision, *lengths)).predict(
            model("smollm2-135m").geometry.operators
        ).decode_ms
        for precision in fast_formats(profile)
    }  # fmt: skip
    best = min(times, key=lambda precision: times[precision])
    row = {
        "board": profile.id, "smollm2_135m_ms": times, "best": best,
        "designs": [within_budget(profile, precision, lengths) for precision in dict.fromkeys(("fp32", best))],
        "against_opt_350m": [against_opt(profile, precision, lengths) for precision in dict.fromkeys(("fp32", best))],
    }  # fmt: skip
    print(json.dumps(row), file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", type=Path, required=True)
    out = parser.parse_args().o
    boards = [profile.with_backend("onnxruntime") for profile in list_profiles() if profile.arch == "aarch64"]
    found = {"kind": "predicted", "boards": [board_row(profile) for profile in boards]}
    write_record(out, found)


if __name__ == "__main__":
    main()
