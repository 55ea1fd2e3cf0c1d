"""List the graphs that are shipped for the probe: a geometric grid of sizes for each kind, format and dialect.

The numbers of matrices, layers and rows suit last-level caches of 0.5 to 96 MB and memories from 512 MB on. The shapes
are the probe's (`merino_bench.probe.tasks`), which also chooses the numbers that a board times.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from merino_bench.probe import gpu
from merino_bench.probe import tasks as plan
from merino_edge.export.dialects.external_data import PAGE
from merino_edge.families.operators import linear
from merino_runtime.bundle import QUANTIZED_CACHES

MB = 2**20
DIALECTS, FORMATS = ("fused", "portable"), ("fp32", "int8", "int4")
BEYOND_BYTES = tuple(size * MB for size in (16, 32, 64, 128))  # of matrices beyond the cache
MOST_MATRICES, MOST_SMALL = 320, 128  # of one graph, which keeps the file small
FEW = (1, 2, 4, 8, 12)  # matrices of a graph whose prefill is timed
SWEEP_COUNTS = (4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80)  # 10 to 40 of them fill the cache
SWEEP_LAYERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # 64 at most, as in a block of a design
BEYOND_LAYERS = {"fp32": (1, 2, 4, 6), "int8": (3, 6, 12, 24), "int4": (6, 12, 24, 48)}
TABLE_ROWS = tuple(4096 * 2**step for step in range(7))
MOST_TABLE_BYTES = 160 * MB


@dataclass(frozen=True)
class GraphKey:
    """What distinguishes the shipped graphs; names and meanings as in a row of probe.json (docs/formats.md)."""

    dialect: str
    kind: str
    format: str
    rows: int = 0
    columns: int = 0
    heads: int = 0
    count: int = 1
    uses: int = 1
    kv_heads: int = 0  # 0: as many as `heads`
    kv: str = "fp32"
    by_groups: bool = False

    @property
    def cached_heads(self) -> int:
        """Return the number of KV heads."""
        return self.kv_heads or self.heads


def graph_keys() -> Iterator[GraphKey]:
    for dialect in DIALECTS:
        yield from without_weights(dialect)
        for form in FORMATS:
            for (rows, columns), counts in linear_counts(form).items():
                for count in sorted(counts):
                    yield GraphKey(dialect, "linear", form, rows, columns, count=count)
            for kind, rows, columns in table_shapes(dialect, form):
                yield GraphKey(dialect, kind, form, rows, columns)
    for form in FORMATS:
        yield from decoders("fused", form)
    for side, count in gpu.CHAINS:
        yield GraphKey("portable", "chain", "fp32", side, side, count=count)


def without_weights(dialect: str) -> Iterator[GraphKey]:
    yield GraphKey(dialect, "call", "fp32", columns=plan.CALL_WIDTH)
    yield GraphKey(dialect, "norm", "fp32", columns=plan.NORM_WIDTH, count=plan.IN_A_ROW)
    yield GraphKey(dialect, "activation", "fp32", columns=plan.ACTIVATION_WIDTH, count=plan.IN_A_ROW)
    for width in plan.ATTENTION_WIDTHS:
        yield attention(dialect, width)
    for kv_heads in plan.ATTENTION_KV_HEADS:
        yield attention(dialect, plan.ATTENTION_WIDTHS[0], kv_heads)
    for kv_heads in plan.CHOSEN_KV_HEADS if dialect == "fused" else ():
        yield GraphKey(dialect, "attention", "fp32", columns=plan.CHOSEN_WIDTH, heads=plan.CHOSEN_HEADS,
                       count=plan.CHOSEN_ATTENTIONS, kv_heads=kv_heads)  # fmt: skip
    for groups in plan.GROUPS if dialect == "fused" else ():
        yield GraphKey(dialect, "attention", "fp32", 0, *groups)
    for kv in QUANTIZED_CACHES if dialect == "fused" else ():
        for kv_heads in plan.QUANTIZED_KV_HEADS:
            yield attention(dialect, plan.ATTENTION_WIDTHS[0], kv_heads, kv)


def attention(dialect: str, width: int, kv_heads: int = 0, kv: str = "fp32") -> GraphKey:
    return GraphKey(dialect, "attention", "fp32", columns=width, heads=plan.ATTENTION_HEADS, count=plan.ATTENTIONS,
                    kv_heads=kv_heads, kv=kv)  # fmt: skip


def linear_counts(form: str) -> dict[tuple[int, int], set[int]]:
    """Return the numbers of matrices by their shape (rows, columns)."""
    counts_of = {shape: set(FEW) for shape in plan.PREFILL_SHAPES}
    for size in BEYOND_BYTES:
        for shape, wished, most in (
            (plan.SQUARE, size, MOST_MATRICES), (plan.SMALL_SQUARE, size / plan.SMALL_SHARE, MOST_SMALL),
        ):  # fmt: skip
            counts_of[shape].add(min(most, int(wished / (stored_bytes(form, *shape) + PAGE))))
    if form == "fp32":
        for side in plan.SWEEP_SIDES:
            matrix_bytes = stored_bytes(form, side, side)
            counts = {count for count in SWEEP_COUNTS if count * matrix_bytes <= plan.MOST_BEYOND_BYTES}
            counts_of[side, side] = counts_of.get((side, side), set()) | counts
    return counts_of


def table_shapes(dialect: str, form: str) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, rows, columns) of heads alone, and of tied embeddings, of which memory is probed. int4 bundles have
    both in int8."""
    kinds = [("head", plan.NARROW_COLUMNS), ("head", plan.HEAD_COLUMNS)] if form != "int4" else []
    kinds += [("table", plan.EMBEDDING_COLUMNS)] if form in plan.EMBEDDING_FORMATS[dialect] else []
    for kind, columns in kinds:
        for rows in TABLE_ROWS:
            if stored_bytes(form, rows, columns) <= MOST_TABLE_BYTES:
                yield kind, rows, columns


def decoders(dialect: str, form: str) -> Iterator[GraphKey]:
    """Yield whole decoders; the probe times none in dialect `portable`."""

    def decoder(width: int, ffn: int, layers: int, heads: int) -> GraphKey:
        return GraphKey(dialect, "decoder", form, ffn, width, heads=heads, count=layers)

    for shape in plan.DECODERS:
        yield decoder(*shape)
    yield replace(decoder(*plan.DECODERS[-1]), kv_heads=plan.GROUPED_DECODER_KV_HEADS)
    for width, ffn, layers, heads, kv_heads in plan.CHOSEN_DECODERS:
        yield replace(decoder(width, ffn, layers, heads), kv_heads=kv_heads)
    for layers in BEYOND_LAYERS[form]:
        yield decoder(plan.LARGE_WIDTH, 2 * plan.LARGE_WIDTH, layers, plan.LARGE_HEADS)
    for width, ffn, layers, uses, heads in plan.SHARED_DECODERS:
        yield replace(decoder(width, ffn, layers, heads), uses=uses)
    if form == "fp32":
        for width in plan.SHARED_SWEEP_WIDTHS:
            yield replace(decoder(width, width, 1, width // plan.SWEEP_HEAD_SIZE), uses=plan.SWEEP_USES)
    if form in plan.SWEPT_FORMATS:
        width, ffn, layers, heads = plan.DECODERS[-1]
        layer_bytes = 4 * stored_bytes(form, width, width) + 2 * stored_bytes(form, ffn, width)
        for count in SWEEP_LAYERS:
            if count != layers and count * layer_bytes <= plan.MOST_BEYOND_BYTES:
                yield decoder(width, ffn, count, heads)


def stored_bytes(form: str, rows: int, columns: int) -> float:
    return linear(columns, rows).stored_bytes(form)
