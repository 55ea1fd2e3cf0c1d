"""What an operator asks of a machine, in amounts of a few quantities: the one formula of the latency model.

Time is the sum over operators and quantities of amount x unit time, so it is linear in the unit times, which
`calibration` fits to a probe and `design.estimate` derives from a board's basic figures, and it adds up over
operators, which the exact solver needs. Unit times hold for one thread count. What is not linear (the caches) is a
regime's: `design.costs`.

Quantities, by the unit times that they are multiplied with:
    step_us: runs of the decoder          launch_us: operators          product_us: products with a matrix
    attention_us: attentions              choose_ns: logits looked at   norm_ns, activation_ns: elements
    kv_ms_gb: GB of keys and values       pair_ms_g: 10^9 multiply-adds of attention
    score_ns: scores                      entry_ns: elements of new keys, values, queries
    memory_ms_gb: GB (10^9 bytes) of weights, keys and values that a run reads for the first time, on top where they
        come from beyond the cache
    again_ms_gb, of the same unit time: GB of weights that were read before in the run and are no longer in the cache
and per weight format F, for a product with a matrix:
    F.load_ms_gb: GB of weights           F.mac_ms_g: 10^9 multiply-adds
    F.scale_ns: scales x tokens           F.row_ns: elements of the result
    F.head_row_ns: the same of the head, whose one row has kernels of its own
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from merino_edge.families.operators import FORMATS, KV_BYTES_PER_ELEMENT, Operator, largest_block
from merino_edge.profiles.coefficients import AGAIN, MEMORY, Dialect

US_PER_UNIT = {"us": 1.0, "ns": 1e-3, "gb": 1e-6, "g": 1e-6}  # by the last word of a quantity's name, per element

# Operators of the graph that stand for one of ours. `embed` carries what a graph begins with (mask and positions).
NODES: Mapping[Dialect, Mapping[str, int]] = {
    "fused": {"embed": 9, "norm": 1, "activation": 1, "head": 3},
    "portable": {"embed": 12, "norm": 6, "activation": 9, "head": 2, "attention": 30},
}
INTEGER_NODES = 4  # beside a portable product of 8 bits: quantising its input, scaling its output

Amounts = dict[str, float]


def matrix_format(op: Operator, precision: str) -> str:
    """The format that a matrix or table of a decoder in `precision` is stored in: int4's tables have 8 bits."""
    form = FORMATS[precision]
    bits = form.table_bits if op.kind in ("embed", "head") else form.bits
    return {32: "fp32", 16: "fp16", 8: "int8", 4: "int4"}[bits]


@lru_cache(maxsize=2**16)  # a search asks for the same few thousand again and again; nobody changes what it gets
def amounts(
    op: Operator, precision: str, tokens: int, past: int, dialect: Dialect = "fused", half: float = 0.0
) -> Mapping[str, float]:
    """Of one run over `tokens` new positions behind `past` cached ones.

    Memory as if the caches held nothing of the run before. Of what this run read before, they hold a part
    (`again_share`), half of it where `half` bytes were read in between.
    """
    found: Amounts = defaultdict(float)
    nodes = NODES[dialect].get(op.kind, 0)
    rows_out = 1 if op.kind == "head" or op.final else tokens
    found["launch_us"] += nodes
    if op.kind in ("linear", "head"):
        product_amounts(found, op, precision, rows_out, dialect)
        size = op.read_bytes(precision)
        if op.reread:
            found[AGAIN] += again_share(op.reread * op.bytes_per_weight(precision), half) * size
        else:
            found[MEMORY] += size
    if op.kind == "head":
        found["step_us"] += 1
        found["choose_ns"] += op.matrix / op.columns
    if op.kind == "attention":
        attention_amounts(found, op, tokens, past)
    if op.kind in ("norm", "activation"):
        found[f"{op.kind}_ns"] += nodes * op.vectors * rows_out
    return {name: amount * US_PER_UNIT[name.rsplit("_", 1)[1]] for name, amount in found.items()}


def product_amounts(found: Amounts, op: Operator, precision: str, tokens: int, dialect: Dialect) -> None:
    form = matrix_format(op, precision)
    rows = op.matrix // op.columns
    size = op.read_bytes(precision)
    found["product_us"] += 1
    found["launch_us"] += bool(op.vector)
    found[f"{form}.load_ms_gb"] += size
    found[f"{form}.mac_ms_g"] += op.matrix * tokens
    found[f"{form}.{'head_row_ns' if op.kind == 'head' else 'row_ns'}"] += rows * tokens
    if form == "fp32":
        return
    if dialect == "fused":
        found[f"{form}.scale_ns"] += rows * (op.columns // (largest_block(op.columns) or op.columns)) * tokens
    else:
        found["launch_us"] += INTEGER_NODES


def partly_share(size: Any, low: float, high: float) -> Any:
    """The share of `size`, a number or an array of them, that comes from memory: none up to `low`, all from `high` on,
    its amount linear between."""
    return np.clip(high * (size - low) / ((high - low) * size), 0, 1) if high else 1.0


def again_share(between: Any, half: float) -> Any:
    """Of what was read before, the share that comes from memory where so many bytes, a number or an array of them, were
    read in between: in proportion, half of it at `half`, all from twice as much on."""
    return np.minimum(between / (2 * half), 1.0) if half else 1.0


def attention_amounts(found: Amounts, op: Operator, tokens: int, past: int) -> None:
    """Every query meets every key, cached and new: the kernels know no causal short cut."""
    total = past + tokens
    size = 2 * op.width * total * KV_BYTES_PER_ELEMENT
    found["attention_us"] += 1
    found[MEMORY] += size
    found["kv_ms_gb"] += size
    found["pair_ms_g"] += 2 * op.query_width * tokens * total
    found["score_ns"] += op.heads * tokens * total
    found["entry_ns"] += (op.query_width + 2 * op.width) * tokens


def total_us(amounts_of_all: Iterable[Mapping[str, float]], unit_times: Mapping[str, float]) -> float:
    return sum(amount * unit_times[name] for one in amounts_of_all for name, amount in one.items())
