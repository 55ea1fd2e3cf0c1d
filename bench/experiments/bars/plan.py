"""Which entrants meet in which section, and the bars that their ratios are held against."""

from collections.abc import Sequence
from typing import NamedTuple

from entrants import PROBE, TIMED, VOCAB_CUT, VOCAB_PREFERRED, Entrant, llama, ours

SAME, SHIPPED = "equal format", "as shipped"


class Bar(NamedTuple):
    """`fast` over `slow`, in decode or prefill speed; `least`: None where the ratio is reported without a bar."""

    phase: str
    fast: Entrant
    slow: Entrant
    least: float | None
    kind: str = SAME


class Section(NamedTuple):
    title: str
    entrants: Sequence[Entrant]
    bars: Sequence[Bar]


def section_66m(model: str = "66m") -> Section:
    fp32, int8, int4 = (ours(model, one) for one in ("fp32", "int8", "int4"))
    int8_32, int4_32 = (ours(model, one, block=32) for one in ("int8", "int4"))
    full, q8, q4, q4_all = (
        llama(model, "F32"), llama(model, "Q8_0"), llama(model, "Q4_0", "Q8_0"), llama(model, "Q4_0"),
    )  # fmt: skip
    pairs = [(fp32, full, 1.0), (int8_32, q8, 1.2), (int8, q8, 1.5), (int4_32, q4, 1.2), (int4, q4, 1.5)]
    bars = [Bar("decode", *pair) for pair in pairs]
    bars += [Bar("decode", int4_32, q4_all, None), Bar("decode", int4, q4_all, None)]
    bars += [Bar("prefill", fast, slow, 1.3) for fast, slow, _ in pairs]
    entrants = (fp32, full, int8, q8, int8_32, int4, q4, int4_32, q4_all)
    return Section("66 M (14 layers of 640, vocabulary 50257) against llama.cpp", entrants, bars)


def section_opt(model: str = "opt-350m") -> Section:
    fp32, int8, int4 = (ours(model, one) for one in ("fp32", "int8", "int4"))
    formats = ((fp32, "F32", ""), (int8, "Q8_0", ""), (int4, "Q4_0", "Q8_0"))
    eager = Entrant("transformers", model, "fp32")
    ct2 = Entrant("ctranslate2", model, "int8")
    bars: list[Bar] = []
    entrants: list[Entrant] = []
    for mine, precision, table in formats:
        equal, wide = llama(model, precision, table, equal_bytes=True), llama(model, precision, table)
        bars += [Bar("decode", mine, equal, 1.0), Bar("decode", mine, wide, None), Bar("prefill", mine, equal, None)]
        entrants += [mine, equal, wide]
    entrants += [llama(model, "Q4_0", equal_bytes=True), ct2, eager]
    bars += [
        Bar("decode", int4, llama(model, "Q4_0", equal_bytes=True), None),
        Bar("decode", int8, ct2, 1.5), Bar("prefill", int8, ct2, None),
        Bar("decode", fp32, eager, None), Bar("decode", int4, eager, 5.0, SHIPPED),
        Bar("prefill", int4, eager, None, SHIPPED),
    ]  # fmt: skip
    return Section("OPT-350M against other engines", entrants, bars)


def section_64m(small: str = "64m", large: str = "opt-350m") -> Section:
    eager = Entrant("transformers", large, "fp32")
    bars: list[Bar] = []
    entrants: list[Entrant] = []
    for precision in ("fp32", "int8", "int4"):
        pair = ours(small, precision), ours(large, precision)
        cut = ours(f"{small}-v{VOCAB_CUT}", precision), ours(f"{large}-v{VOCAB_CUT}", precision)
        own = ours(f"{small}-v{VOCAB_PREFERRED}", precision), pair[1]
        entrants += [*pair, *cut, own[0]]
        bars += [Bar("decode", *pair, 4.9), Bar("decode", *own, 4.9), Bar("prefill", *pair, None),
                 Bar("decode", *cut, None)]  # fmt: skip
    bars += [Bar("decode", ours(small, "int4"), eager, 30.0, SHIPPED),
             Bar("prefill", ours(small, "int4"), eager, None, SHIPPED)]  # fmt: skip
    return Section("A designed 64M model against OPT-350M", [*entrants, eager], bars)


def section_timed(large: str = "opt-350m") -> Section:
    """Designs whose budget is the time itself, on this machine, beside at most 60.2 M parameters."""
    pairs = [(ours(f"{TIMED}{precision}", precision), ours(large, precision)) for precision in ("fp32", "int8", "int4")]
    bars = [Bar(phase, *pair, least) for pair in pairs for phase, least in (("decode", 4.9), ("prefill", None))]
    return Section("Designs for the time, against OPT-350M", [one for pair in pairs for one in pair], bars)


def section_ceiling(models: Sequence[str] = ("opt-350m", "66m")) -> Section:
    entrants = [ours(model, precision) for model in models for precision in ("fp32", "int8")]
    return Section("Share of the read bandwidth", [Entrant(PROBE), *entrants], ())


SECTIONS = {"66m": section_66m, "opt": section_opt, "64m": section_64m, "timed": section_timed,
            "ceiling": section_ceiling}
SMALL_SECTIONS = {  # the same code on models of a tenth of a second, to try it
    "66m": lambda: section_66m("try"), "opt": lambda: section_opt("try-opt"),
    "64m": lambda: section_64m("try", "try-opt"), "timed": lambda: section_timed("try-opt"),
    "ceiling": lambda: section_ceiling(("try",)),
}  # fmt: skip
