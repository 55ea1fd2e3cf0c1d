"""The table of docs/boards/index.md: what the shipped profiles predict of published models on each board."""

import json
import sys
from pathlib import Path

from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import cache_on, formats_of, refused_words
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import load_profile, profile_ids

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "experiments"))
from write_record import table  # noqa: E402

MODELS = ("smollm2-135m", "gemma-3-270m", "smollm2-360m", "qwen3-0.6b", "gemma-3-1b-it", "llama-3.2-1b", "qwen3-1.7b")
CONTEXT, PROMPT = 512, 256
# List price of the board with this memory when it came out, US dollars: the makers' announcements.
PRICES = {
    "raspberry-pi-zero-2w": 15, "raspberry-pi-4": 55, "raspberry-pi-5": 60, "jetson-nano": 99, "jetson-orin-nano": 249,
}  # fmt: skip


def row(profile: DeviceProfile) -> list[str]:
    gigabytes = profile.memory.ram_mb.value / 1024
    speeds = [fastest(profile, one) for one in MODELS]
    name = profile.name.partition(" (")[0]
    return [f"[{name}]({profile.id}.md)", f"${PRICES[profile.id]}", f"{gigabytes:g} GB", *speeds, confirmed(profile)]


def fastest(profile: DeviceProfile, name: str) -> str:
    """Tokens per second of the fastest format that fits, on the default backend where one does, else on the CPU."""
    for backend in dict.fromkeys((profile.backend, "onnxruntime")):
        speeds = speeds_of(profile.with_backend(backend), name)
        if speeds:
            best = max(speeds, key=lambda one: speeds[one])
            digits = 0 if speeds[best] >= 9.5 else 1
            return f"{speeds[best]:.{digits}f} {best}{'' if backend == profile.backend else ' CPU'}"
    return "no"


def speeds_of(profile: DeviceProfile, name: str) -> dict[str, float]:
    """{format: tokens per second}, where the runtime takes the format and the free memory holds the model."""
    ms, geometry = {}, model(name).geometry
    for precision in formats_of(profile):
        shape = InferenceShape(precision, CONTEXT, PROMPT, cache_on(profile, geometry, precision))
        costs = cost_model(profile, shape).predict(geometry.operators)
        if costs.memory_mb <= profile.memory.free_mb.value and not refused_words(profile, precision):
            ms[precision] = 1e3 / costs.decode_ms
    return ms


def confirmed(profile: DeviceProfile) -> str:
    """The median error of predicted decode against published speeds, and their number, per processor."""
    summaries = json.loads((ROOT / "bench" / "results" / "published.json").read_text(encoding="utf-8"))["summaries"]
    return "; ".join(
        f"{one['backend'].upper()} {one['median']:.0%} of {one['rows']}"
        for one in summaries if (one["board"], one["phase"]) == (profile.id, "decode")
    )  # fmt: skip


def text() -> str:
    """In the order of price. A board without a price is an error: add it to PRICES."""
    profiles = [load_profile(one) for one in profile_ids()]
    titles = ["board", "price", "memory", *(model(one).name for one in MODELS), "error against published"]
    return table(titles, [row(profile) for profile in sorted(profiles, key=lambda one: PRICES[one.id])])
