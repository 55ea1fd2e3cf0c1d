"""Decode behind a long cache against llama.cpp with its default cache, which is float16, and with one of Q8_0; ours is
float32."""

from entrants import Entrant, llama, ours
from runs import Runs
from tables import disturbed, ratio_cells, ratio_of, table, values_ms

from merino_bench.harness.cases import Case, decode_case

SECTION, CONTEXT = "depth", 2048
DEPTHS, STEPS = (64, 448, 1984), 32
FORMATS = (("fp32", "F32", ""), ("int8", "Q8_0", ""), ("int4", "Q4_0", "Q8_0"))
CACHES = {"fp32": (False,), "int8": (False, True), "int4": (False, True)}  # whether llama.cpp's is Q8_0


def pairs(models: tuple[str, str]) -> list[tuple[Entrant, Entrant]]:
    """(ours, llama.cpp's) in each format. models: one of equal layers, and OPT-350M, whose table is half as wide."""
    plain, opt = models
    return [
        (
            ours(model, mine, context=CONTEXT),
            llama(model, theirs, wide, q8_0_cache=small, equal_bytes=model == opt, context=CONTEXT),
        )
        for model in (plain, opt) for mine, theirs, wide in FORMATS for small in CACHES[mine]
    ]  # fmt: skip


def tests(models: tuple[str, str]) -> list[tuple[Entrant, Case]]:
    taking_part = dict.fromkeys(one for pair in pairs(models) for one in pair)
    return [(one, decode_case(STEPS, depth)) for depth in DEPTHS for one in taking_part]


def report(runs: Runs, models: tuple[str, str]) -> str:
    rows = []
    for depth in DEPTHS:
        keys = {"section": SECTION, "test": decode_case(STEPS, depth).name}
        for pair in pairs(models):
            times = [values_ms(runs, "decode", entrant=one.name, **keys) for one in pair]
            cells = [f"{sorted(ms.values())[len(ms) // 2]:.2f}" if ms else "-" for ms in times]
            mark = "disturbed" if disturbed(runs, pair, **keys) else ""
            rows.append([f"{depth}", *(one.name for one in pair), *cells, *ratio_cells(ratio_of(runs, *pair, "decode",
                         **keys)), mark])  # fmt: skip
    titles = ["tokens cached", "ours", "llama.cpp", "our ms per token", "its ms per token", "ratio", "95 %", ""]
    return f"\n### Behind a long cache, {STEPS} steps\n\n" + table(titles, rows)
