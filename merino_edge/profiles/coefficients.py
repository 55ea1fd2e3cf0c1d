"""Define the numbers of a device profile with their source: single figures, and the coefficients of the latency model.

`prediction.latency` defines the term that each coefficient multiplies; `profile` defines the profile as a whole.
"""

import typing
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_runtime.bundle import QUANTIZED_CACHES

Dialect = Literal["fused", "portable"]
GENERAL = (
    "step_us", "launch_us", "matmul_us", "attention_us", "argmax_ns", "norm_ns", "activation_ns", "kv_ms_gb",
    "attention_ms_per_gmac", "decode_attention_ms_per_gmac", "score_ns", "decode_score_ns", "entry_ns", "memory_ms_gb",
)  # fmt: skip
MEMORY, REREAD = "memory_ms_gb", "reread_ms_per_gb"
# Of many queries and of one; also of each quantized cache.
ATTENTION_MACS = ("attention_ms_per_gmac", "decode_attention_ms_per_gmac")
OF_ATTENTION = ("attention_us", "kv_ms_gb", *ATTENTION_MACS, "score_ns", "decode_score_ns", "entry_ns")
GROUPS = "groups"  # before the name of a coefficient: of this project's attention by groups
OF_FORMAT = ("load_ms_gb", "mac_ms_g", "row_ns", "head_row_ns")

Kind = Literal["calibrated", "published", "datasheet", "estimated"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)  # strongest first
Text = Annotated[str, Field(pattern=r"\S")]
# Far above any board, and so small that no quotient or product of a few figures leaves the range of float64.
LEAST, MOST = 1e-6, 1e9
MOST_THREADS = 1024
ThreadCount = Annotated[int, Field(gt=0, le=MOST_THREADS)]
Coefficient = Annotated[float, Field(ge=0, le=MOST)]
Values = Annotated[tuple[Coefficient, ...], Field(strict=False, min_length=1, max_length=MOST_THREADS)]
Ratio = Annotated[float, Field(ge=LEAST, le=MOST)]
Share = Annotated[float, Field(ge=0, le=MOST)]


class Facts(BaseModel):
    """Frozen facts without unknown keys, and strict: "4" is not accepted for 4."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Figure(Facts):
    """A number, its kind, and where it comes from."""

    value: float = Field(ge=LEAST, le=MOST)
    kind: Kind
    source: Text


class Count(Figure):
    """A figure that is an integer."""

    value: int = Field(gt=0, le=int(MOST))


class Threads(Count):
    """Cores, or threads that run on them."""

    value: int = Field(gt=0, le=MOST_THREADS)


class LatencyError(Facts):
    """The error of predicted latencies of decoders: log(measured / predicted) is distributed as `center` + `scale`
    times Student's t. Bounded, so that no interval of it overflows.

    `of`: which decoders, each held out of the fit that predicted it: `designs` that a search chose, or the `probe`'s
    own; or `published` speeds of other engines on such a board. `decoders`: their number; None if it is not known.
    """

    center: Annotated[float, Field(ge=-5, le=5)]
    scale: Annotated[float, Field(gt=0, le=5)]
    degrees_of_freedom: Annotated[float, Field(ge=1, le=MOST)]
    of: Literal["designs", "probe", "published"] = "probe"
    decoders: Annotated[int, Field(ge=1)] | None = None


class FormatCoefficients(Facts):
    """Of one weight format; the lists have an entry per thread count.

    `resident`: resident bytes per byte of its matrices. `table_resident`: the same of the embedding, which is the head
    too. `table_opening`: extra resident bytes per byte of the embedding's pieces during prepacking, when the original
    and the packed copy of a piece coexist. `decode_error`, `prefill_error`: None if too few decoders were timed.
    """

    load_ms_gb: Values
    mac_ms_g: Values
    row_ns: Values
    head_row_ns: Values
    resident: Ratio
    table_resident: Ratio
    table_opening: Share
    decode_error: LatencyError | None = None
    prefill_error: LatencyError | None = None


class CacheCoefficients(Facts):
    """Of attention over a quantized cache; the lists have an entry per thread count."""

    attention_ms_per_gmac: Values
    decode_attention_ms_per_gmac: Values


class GroupCoefficients(CacheCoefficients):
    """Of this project's attention by groups, over a cache of floats. `int8`: over one in int8."""

    attention_us: Values
    kv_ms_gb: Values
    score_ns: Values
    decode_score_ns: Values
    entry_ns: Values
    int8: CacheCoefficients | None = None


class Coefficients(Facts):
    """Coefficients of the latency model, in time per unit of a term; entry i of each list is for `threads[i]` threads.

    The weights, keys and values that a step reads are resident in the last-level cache up to `cache_within_mb` (2^20
    bytes), partial above, and streaming from memory from `cache_beyond_mb` on. If a step reads weights again, half of
    them are still resident after `cache_half_mb` of other reads.

    `int8_cache`, `int4_cache`: None if they were not measured, or the backend has no such caches. `groups`: None if the
    library of kernels was not loaded; then attention by groups counts as onnxruntime's.
    """

    kind: Kind
    source: Text
    dialect: Dialect
    threads: Annotated[tuple[ThreadCount, ...], Field(strict=False, min_length=1, max_length=MOST_THREADS)]
    cache_within_mb: Values
    cache_beyond_mb: Values
    cache_half_mb: Values
    step_us: Values
    launch_us: Values
    matmul_us: Values
    attention_us: Values
    argmax_ns: Values
    norm_ns: Values
    activation_ns: Values
    kv_ms_gb: Values
    attention_ms_per_gmac: Values
    decode_attention_ms_per_gmac: Values
    score_ns: Values
    decode_score_ns: Values
    entry_ns: Values
    memory_ms_gb: Values
    int8_cache: CacheCoefficients | None = None
    int4_cache: CacheCoefficients | None = None
    groups: GroupCoefficients | None = None
    fp32: FormatCoefficients
    int8: FormatCoefficients | None = None  # a backend that is too old has no such matrix multiplications
    int4: FormatCoefficients | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = len(self.threads)
        if list(self.threads) != sorted(set(self.threads)):
            raise ValueError(f"threads are {list(self.threads)}, must grow")
        lists = {name: getattr(self, name) for name in EDGES} | self.lists
        wrong = [f"{name} has {len(values)}" for name, values in lists.items() if len(values) != count]
        if wrong:
            raise ValueError(f"each list has a value per thread count, {count}; {', '.join(wrong)}")
        if any(low >= high for low, high in zip(self.cache_within_mb, self.cache_beyond_mb, strict=True)):
            raise ValueError("cache_within_mb must be below cache_beyond_mb")
        return self

    @property
    def lists(self) -> dict[str, tuple[float, ...]]:
        """Return the lists that were measured, by the names of `prediction.latency`."""
        parts: list[tuple[str, Any, tuple[str, ...]]]
        parts = [("", self, GENERAL), (f"{GROUPS}.", self.groups, OF_ATTENTION)]
        parts += [(f"{kv}.", getattr(self, f"{kv}_cache"), ATTENTION_MACS) for kv in QUANTIZED_CACHES]
        parts += [(f"{GROUPS}.int8.", self.groups and self.groups.int8, ATTENTION_MACS)]
        parts += [(f"{form}.", getattr(self, form), OF_FORMAT) for form in FORMS]
        return {f"{prefix}{name}": getattr(part, name) for prefix, part, names in parts if part for name in names}

    @cached_property
    def by_threads(self) -> tuple[dict[str, float], ...]:
        """Return all coefficients of each thread count, by the names of `prediction.latency`."""
        lists = self.lists | {REREAD: self.memory_ms_gb}
        return tuple({name: values[at] for name, values in lists.items()} for at in range(len(self.threads)))

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(form for form in FORMS if getattr(self, form) is not None)

    def of_format(self, form: str) -> FormatCoefficients:
        coefficients: FormatCoefficients = getattr(self, form)
        return coefficients


FORMS = ("fp32", "int8", "int4")
EDGES = ("cache_within_mb", "cache_beyond_mb", "cache_half_mb")


def weakest_kind(figures: Iterable[Figure | Coefficients]) -> Kind:
    """Return the provenance of a prediction from these figures: the weakest of their kinds."""
    return max((figure.kind for figure in figures), key=KINDS.index)
