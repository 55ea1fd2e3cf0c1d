"""The pictures of docs/evidence.md from the records: predictions beside measurements, and decoding behind a cache."""

import json
import math
from html import escape
from pathlib import Path
from statistics import mean, median
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
COLOURS = {"fp32": "#1664b5", "int8": "#c2410c", "int4": "#15803d"}
SIDE, LEFT, TOP, GAP = 230, 52, 40, 66  # of a panel, in pixels


def read(record: str) -> Any:
    return json.loads((RESULTS / record).read_text(encoding="utf-8"))


def drawing(width: int, height: int, title: str, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" font-family="sans-serif" font-size="12"><title>{escape(title)}</title>'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


def write(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222"{more}>{escape(words)}</text>'


def line(x: float, y: float, to_x: float, to_y: float, colour: str = "#bbb", more: str = "") -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"{more}/>'


def legend(names: dict[str, str], x: float, y: float) -> list[str]:
    parts = []
    for name, colour in names.items():
        parts += [f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="4" fill="{colour}"/>', write(x + 9, y, name, "start")]
        x += 30 + 6.4 * len(name)
    return parts


def predictions() -> str:
    """A point per design and format: on the line where the prediction is the measurement."""
    rows = read("predictions-x86-2cores.json")["rows"]
    panels = (("decode", "decode, ms"), ("prefill_256", "prefill of 256 tokens, ms"), ("memory", "peak memory, MB"))
    parts = legend(COLOURS, LEFT, 20)
    for place, (key, title) in enumerate(panels):
        pairs = [(row["precision"], row[key]["measured"], row[key]["predicted"]) for row in rows if row.get(key)]
        parts += panel(LEFT + place * (SIDE + GAP), title, pairs)
    return drawing(LEFT + 3 * SIDE + 2 * GAP + 16, TOP + SIDE + 46, "Predicted against measured", parts)


def panel(left: float, title: str, pairs: list[tuple[str, float, float]]) -> list[str]:
    values = [value for _, *both in pairs for value in both]
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05

    def at(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * SIDE

    bottom = TOP + SIDE
    parts = [f'<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#bbb"/>']
    for tick in ticks(low, high):
        parts += [
            line(left + at(tick), bottom, left + at(tick), bottom + 4),
            write(left + at(tick), bottom + 16, f"{tick:g}"),
            line(left - 4, bottom - at(tick), left, bottom - at(tick)),
            write(left - 7, bottom - at(tick) + 4, f"{tick:g}", "end"),
        ]  # fmt: skip
    parts += [line(left, bottom, left + SIDE, TOP, "#888"), write(left + SIDE / 2, bottom + 34, f"measured {title}")]
    parts.append(write(left + 8, TOP + 16, "predicted", "start"))
    parts += [
        f'<circle cx="{left + at(measured):.1f}" cy="{bottom - at(predicted):.1f}" r="3" fill="{COLOURS[precision]}"'
        ' fill-opacity="0.6"/>'
        for precision, measured, predicted in pairs
    ]
    return parts


def ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [10.0**power for power in powers if low <= power <= high]
    fine = [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= math.log10(step) + power <= high]
    return found if len(found) > 2 else fine


ENGINES = {
    "this project, int8 cache": ("ours 66m int8 (int8 cache)", "#c2410c"),
    "this project, float32 cache": ("ours 66m int8", "#f59e0b"),
    "llama.cpp for AVX2, float16 cache": ("llama.cpp 66m Q8_0", "#1664b5"),
}
DEPTHS = (64, 448, 1984)


def behind_cache() -> str:
    """Milliseconds per token of 66 M parameters in int8 against the tokens cached: medians of the rounds."""
    runs = read("depth-x86-2cores.json")["runs"]
    width, height, bottom = 620, 240, 270
    top = bottom - height + 10
    parts = [f'<rect x="{LEFT}" y="{top}" width="{width}" height="{height - 10}" fill="none" stroke="#bbb"/>']
    for tick in range(0, 30, 5):
        y = bottom - tick / 30 * height
        parts += [line(LEFT - 4, y, LEFT, y), write(LEFT - 8, y + 4, str(tick), "end")]
    for depth in DEPTHS:
        x = LEFT + depth / 2048 * width
        parts += [line(x, bottom, x, bottom + 4), write(x, bottom + 16, f"{depth:,}")]
    for engine, colour in ENGINES.values():
        steps = [(depth, step_ms(runs, engine, depth)) for depth in DEPTHS]
        points = [(LEFT + depth / 2048 * width, bottom - step / 30 * height) for depth, step in steps]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
    parts += legend({name: colour for name, (_, colour) in ENGINES.items()}, LEFT, 20)
    parts += [write(LEFT + width / 2, bottom + 34, "tokens cached"), write(LEFT + 8, top + 16, "ms per token", "start")]
    return drawing(LEFT + width + 16, bottom + 46, "Decode latency behind a long cache", parts)


def step_ms(runs: list[dict[str, Any]], engine: str, depth: int) -> float:
    rounds = {}
    for run in sorted(runs, key=lambda run: not run["flags"]):  # an undisturbed attempt of a round counts
        if run["entrant"] == engine and run["test"] == f"tg32 @ d{depth}":
            rounds[run["round"]] = median(mean(each) for each in run["step_ms"])
    return median(rounds.values())
