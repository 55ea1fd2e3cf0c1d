"""Decode behind a long cache against llama.cpp with its default cache, which is float16, and with one of Q8_0.

Ours is float32; beside the quantised weights also int8 (`--kv int8`).
"""

from entrants import Entrant, llama, ours
from runs import Runs, disturbed, ratio_cells, ratio_of, table, values_ms

from merino_bench.harness.cases import Case, decode_case

CONTEXT = 2048
SECTIONS = {"depth": "66m", "depth-opt": "opt-350m"}  # the model of each
SMALL_SECTIONS = {"depth": "try", "depth-opt": "try-opt"}
WIDE = ("opt-350m", "try-opt")  # their table is narrower than their layers, which llama.cpp does not know
DEPTHS, STEPS = (64, 448, 1984), 32
# Ours, the caches of ours, llama.cpp's and its table, whether its cache is Q8_0
FORMATS = (
    ("fp32", (None,), "F32", "", (False,)),
    ("int8", (None, "int8"), "Q8_0", "", (False, True)),
    ("int4", (None, "int8"), "Q4_0", "Q8_0", (False, True)),
)


def pairs(model: str) -> list[tuple[Entrant, Entrant]]:
    """(ours, llama.cpp's) in each format of weights and cache."""
    return [
        (
            ours(model, mine, context=CONTEXT, kv=kv),
            llama(model, theirs, wide, q8_0_cache=small, equal_bytes=model in WIDE, context=CONTEXT),
        )
        for mine, caches, theirs, wide, theirs_small in FORMATS for kv in caches for small in theirs_small
    ]  # fmt: skip


def tests(model: str) -> list[tuple[Entrant, Case]]:
    taking_part = dict.fromkeys(one for pair in pairs(model) for one in pair)
    return [(one, decode_case(STEPS, depth)) for depth in DEPTHS for one in taking_part]


def report(runs: Runs, section: str, model: str) -> str:
    rows = []
    for depth in DEPTHS:
        keys = {"section": section, "test": decode_case(STEPS, depth).name}
        for pair in pairs(model):
            times = [values_ms(runs, "decode", entrant=one.name, **keys) for one in pair]
            cells = [f"{sorted(ms.values())[len(ms) // 2]:.2f}" if ms else "-" for ms in times]
            mark = "disturbed" if disturbed(runs, pair, **keys) else ""
            rows.append([f"{depth}", *(one.name for one in pair), *cells, *ratio_cells(ratio_of(runs, *pair, "decode",
                         **keys)), mark])  # fmt: skip
    titles = ["tokens cached", "ours", "llama.cpp", "our ms per token", "its ms per token", "ratio", "95 %", ""]
    return f"\n### {model} behind a long cache, {STEPS} steps\n\n" + table(titles, rows)
