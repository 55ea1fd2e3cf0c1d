"""List the graphs that are shipped for the probe: a geometric grid of sizes for each kind, format and dialect.

The numbers of matrices, layers and rows suit last-level caches of 0.5 to 96 MB and memories from 512 MB on. The shapes
are the probe's (`merino_bench.probe.tasks`), which also chooses the numbers that a board times.
"""

from collections.abc import Iterator

from merino_bench.probe import gpu
from merino_bench.probe import tasks as plan
from merino_bench.probe.tasks import Task
from merino_edge.export.dialects.external_data import PAGE
from merino_edge.families.operators import linear
from merino_runtime.bundle import QUANTIZED_CACHES

MB = 2**20
BEYOND_BYTES = tuple(size * MB for size in (16, 32, 64, 128))  # of matrices beyond the cache
MOST_MATRICES, MOST_SMALL = 320, 128  # of one graph, which keeps the file small
FEW = (1, 2, 4, 8, 12)  # matrices of a graph whose prefill is timed
SWEEP_COUNTS = (4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80)  # 10 to 40 of them fill the cache
SWEEP_LAYERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # 64 at most, as in a block of a design
BEYOND_LAYERS = {"fp32": (1, 2, 4, 6), "int8": (3, 6, 12, 24), "int4": (6, 12, 24, 48)}
TABLE_ROWS = tuple(4096 * 2**step for step in range(7))
MOST_TABLE_BYTES = 160 * MB


def graphs_to_ship() -> Iterator[tuple[str, Task]]:
    """Yield (dialect, task) of each graph; threads and numbers of tokens do not matter."""
    for dialect in ("fused", "portable"):
        tasks = without_weights(dialect)
        for form in ("fp32", "int8", "int4"):
            tasks += [
                Task("linear", form, rows, columns, count=count)
                for (rows, columns), counts in linear_counts(form).items() for count in sorted(counts)
            ]  # fmt: skip
            tasks += [Task(kind, form, rows, columns) for kind, rows, columns in table_shapes(dialect, form)]
            if dialect != "portable":  # the probe times no decoder in it
                tasks += decoders(form)
        if dialect == "portable":
            tasks += [Task("chain", "fp32", side, side, count=count) for side, count in gpu.CHAINS]
        yield from ((dialect, task) for task in tasks)


def without_weights(dialect: str) -> list[Task]:
    tasks = [
        Task("call", "fp32", columns=plan.CALL_WIDTH),
        Task("norm", "fp32", columns=plan.NORM_WIDTH, count=plan.IN_A_ROW),
        Task("activation", "fp32", columns=plan.ACTIVATION_WIDTH, count=plan.IN_A_ROW),
        *(plan.attention_of()._replace(columns=width) for width in plan.ATTENTION_WIDTHS),
        *(plan.attention_of(kv_heads=kv_heads) for kv_heads in plan.ATTENTION_KV_HEADS),
    ]
    if dialect != "fused":
        return tasks
    return [
        *tasks, *plan.chosen_attentions(), *plan.own_attentions(),
        *(plan.attention_of(kv_heads=kv_heads, kv=kv)
          for kv in QUANTIZED_CACHES for kv_heads in plan.QUANTIZED_KV_HEADS),
    ]  # fmt: skip


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


def decoders(form: str) -> list[Task]:
    """Return whole decoders."""
    large = (plan.LARGE_WIDTH, 2 * plan.LARGE_WIDTH)
    width, ffn, layers, heads = plan.DECODERS[-1]
    tasks = [plan.decoder_of(form, shape) for shape in plan.DECODERS]
    tasks.append(tasks[-1]._replace(kv_heads=plan.GROUPED_DECODER_KV_HEADS))
    tasks += [plan.decoder_of(form, shape)._replace(kv_heads=kv_heads) for *shape, kv_heads in plan.CHOSEN_DECODERS]
    tasks += [plan.decoder_of(form, (*large, count, plan.LARGE_HEADS)) for count in BEYOND_LAYERS[form]]
    for shared_width, shared_ffn, count, uses, shared_heads in plan.SHARED_DECODERS:
        tasks.append(plan.decoder_of(form, (shared_width, shared_ffn, count, shared_heads))._replace(uses=uses))
    if form == "fp32":
        for swept in plan.SHARED_SWEEP_WIDTHS:
            shape = (swept, swept, 1, swept // plan.SWEEP_HEAD_SIZE)
            tasks.append(plan.decoder_of(form, shape)._replace(uses=plan.SWEEP_USES))
    if form in plan.SWEPT_FORMATS:
        layer_bytes = 4 * stored_bytes(form, width, width) + 2 * stored_bytes(form, ffn, width)
        counts = [count for count in SWEEP_LAYERS if count != layers]
        tasks += [
            plan.decoder_of(form, (width, ffn, count, heads))
            for count in counts if count * layer_bytes <= plan.MOST_BEYOND_BYTES
        ]  # fmt: skip
    return tasks


def stored_bytes(form: str, rows: int, columns: int) -> float:
    return linear(columns, rows).stored_bytes(form)
