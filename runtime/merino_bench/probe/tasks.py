"""List the graphs that a probe times on this machine: within the last-level cache and beyond it, by format and thread
count.

Sizes follow the machine: of the shipped graphs (`graphs`), those nearest to a part or a multiple of its cache that its
memory can hold. The most informative ones come first, because a slow board may not reach the end of the list.
"""
import math
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

from merino_bench.probe import graphs
from merino_bench.probe.graphs import Kernel

MB = 2 ** 20
WITHIN, BEYOND = 0.25, 3.0  # of the last-level cache: surely inside it, surely outside
SWEEP = (0.4, 0.6, 0.8, 1.0, 1.4, 2.0)  # of the cache: from resident to streaming weights
DECODER_SWEEP = (0.3, 0.6, 1.0, 1.6)  # the same of a decoder's layers, which read keys and values too
DEFAULT_CACHE_BYTES = MB  # where the machine does not say
LEAST_BEYOND_BYTES, MOST_BEYOND_BYTES = 16 * MB, 128 * MB
SHARE_OF_FREE = 6  # a session holds its weights about twice while it opens
ALONGSIDE = 12  # matrices of a graph whose prefill is timed, at most
SQUARE, SMALL_SQUARE = (640, 640), (256, 256)  # (rows, columns) of matrices
PREFILL_SHAPES = (SQUARE, SMALL_SQUARE, (1920, 640), (640, 1920))
SMALL_SHARE = 4  # a graph of small matrices has a quarter of the bytes
SWEEP_SIDES = (1024, 512, 256, 128, 64)
CALL_WIDTH, NORM_WIDTH, ACTIVATION_WIDTH, IN_A_ROW = 64, 512, 1024, 16
PREFILL_TOKENS = (16, 64, 256)
DECODE: Tuple[Tuple[int, int], ...] = ((0, 1),)  # (cached, new) tokens
PREFILL = DECODE + tuple((0, tokens) for tokens in PREFILL_TOKENS)
HEAD_COLUMNS, NARROW_COLUMNS, CHOICES = 512, 128, 50257
EMBEDDING_COLUMNS = 640  # of an embedding whose memory is probed
EMBEDDING_FORMATS = {"fused": ("fp32", "int8"), "portable": ("fp32",)}
ATTENTION_WIDTHS, ATTENTION_HEADS, ATTENTIONS = (512, 256), 8, 2
ATTENTION_KV_HEADS = (1, 2)  # of keys, each shared by a group of the heads of queries; beside as many as of queries
QUANTIZED_KV_HEADS = (0, 1)  # of the quantized caches; 0: as many as of queries
ATTENTION_CONTEXT = 2048
ATTENTION = ((0, 1), (256, 1), (1024, 1), (2047, 1), (0, 16), (0, 64), (0, 256), (256, 256))
LONG_DECODE = ((0, 1), (512, 1))
DECODER = ((0, 1), (512, 1), (0, 16), (0, 64), (0, 256))
# (width, FFN width, layers, heads) of whole decoders; large caches hold the smaller ones
DECODERS = ((192, 576, 3, 6), (256, 1024, 4, 8), (640, 960, 2, 10))
GROUPED_DECODER_KV_HEADS = 2  # of the last of these, once more
# (width, FFN width, layers, heads, KV heads): what designs have, behind a cache that is half full and as good as full
CHOSEN_DECODERS = ((1024, 512, 4, 16, 1), (512, 512, 8, 8, 1), (768, 768, 6, 12, 4))
CHOSEN_DECODER = ((0, 1), (480, 1), (992, 1), (0, 64), (0, 256))
# (width, FFN width, layers, uses of each layer, heads): designs with shared layers, whose keys and values take more
# than their weights
SHARED_DECODERS = ((256, 384, 3, 4, 8), (512, 512, 3, 4, 8), (768, 1152, 3, 6, 12))
SHARED_SWEEP = (0.3, 0.5, 0.75)  # of the cache, a layer used again: where its second use begins to miss
SHARED_SWEEP_WIDTHS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
SWEEP_USES, SWEEP_HEAD_SIZE = 6, 64
SWEPT_FORMATS = ("fp32", "int4")  # by version: the last format that ONNX Runtime has operators for in `fused`
LARGE_WIDTH, LARGE_HEADS, LARGE_DECODER = 768, 12, ((0, 1), (512, 1), (0, 64))
DECODER_VOCAB, DECODER_CONTEXT = 4096, 1024
NARROW_ATTENTION = ((0, 1), (1024, 1), (0, 64), (0, 256))
# Attention layers of designs: enough to exceed the cache near a core
CHOSEN_WIDTH, CHOSEN_HEADS, CHOSEN_KV_HEADS, CHOSEN_ATTENTIONS = 1024, 16, (1, 4), 8
CHOSEN_ATTENTION = ((480, 1), (992, 1), (0, 64), (0, 256))
# Of this project's kernels: (columns, heads, count, KV heads, cache format)
GROUPS = (
    (CHOSEN_WIDTH, CHOSEN_HEADS, CHOSEN_ATTENTIONS, 1, "fp32"),
    (CHOSEN_WIDTH, CHOSEN_HEADS, CHOSEN_ATTENTIONS, 4, "fp32"),
    (ATTENTION_WIDTHS[0], ATTENTION_HEADS, ATTENTIONS, 1, "fp32"),
    (ATTENTION_WIDTHS[0], ATTENTION_HEADS, ATTENTIONS, 1, "int8"),
)
GROUPED_ATTENTION = ((256, 1), (1024, 1), (2047, 1), (0, 64), (0, 256))


class Task(NamedTuple):
    """One graph on `threads` threads, run for each (cached, new) number of tokens. docs/formats.md explains the fields,
    as keys of a row of probe.json."""
    kind: str
    format: str
    rows: int = 0
    columns: int = 0
    heads: int = 0
    count: int = 1  # type: ignore[assignment]
    threads: int = 1
    runs: Tuple[Tuple[int, int], ...] = ()
    uses: int = 1
    kv_heads: int = 0  # 0: as many as `heads`
    kv: str = "fp32"
    by_groups: bool = False  # by this project's kernels

    @property
    def cached_heads(self) -> int:
        """Return the number of KV heads."""
        return self.kv_heads or self.heads


class Machine(NamedTuple):
    cache_bytes: int  # last level, 0: not known
    free_bytes: int  # 0: not known
    threads: Tuple[int, ...]
    formats: Tuple[str, ...]
    fused: bool  # whether ONNX Runtime has the operators of that dialect
    caches: Tuple[str, ...] = ()  # quantized formats of keys and values that ONNX Runtime takes
    own_kernels: bool = False  # whether this project's kernels can be loaded

    @property
    def dialect(self) -> str:
        return "fused" if self.fused else "portable"


def tasks(machine: Machine) -> List[Task]:
    """Return the tasks, one of each thread count in turn, so that each count has its most informative ones first."""
    lists = [list(dict.fromkeys(tasks_of(machine, threads))) for threads in machine.threads]
    return [task_list[index] for index in range(max(map(len, lists))) for task_list in lists if index < len(task_list)]


def needed_of(tasks: List[Task]) -> List[Task]:
    """Return the tasks that a calibration needs at least: on all cores, all tasks up to the first grouped-query
    attention. Without it the cost of computing attention cannot be separated from the cost of reading the cache."""
    most = max(task.threads for task in tasks)
    on_all_cores = [task for task in tasks if task.threads == most]
    return on_all_cores[:1 + [task.kind == "attention" and task.kv_heads > 0 for task in on_all_cores].index(True)]


def tasks_of(machine: Machine, threads: int) -> Iterator[Task]:
    cache, decoder_formats = cache_bytes(machine), machine.formats if machine.fused else ()
    yield Task("call", "fp32", columns=CALL_WIDTH, threads=threads, runs=DECODE)
    yield Task("argmax", "fp32", rows=CHOICES, threads=threads, runs=DECODE)
    yield Task("norm", "fp32", columns=NORM_WIDTH, count=IN_A_ROW, threads=threads, runs=PREFILL)
    yield Task("activation", "fp32", columns=ACTIVATION_WIDTH, count=IN_A_ROW, threads=threads, runs=PREFILL)
    for form in machine.formats:
        yield within(machine, form, SQUARE, threads)
        yield beyond(machine, form, SQUARE, threads, beyond_bytes(machine))
        yield within(machine, form, SMALL_SQUARE, threads)
    yield attention_of(threads, ATTENTION)
    yield attention_of(threads, kv_heads=ATTENTION_KV_HEADS[0])
    if machine.fused:
        yield from chosen_attentions(threads)
    if machine.fused and machine.own_kernels:
        yield from own_attentions(threads)
    for decoder_shape in DECODERS:
        for form in decoder_formats:
            yield decoder_of(form, decoder_shape, threads, DECODER)
    yield from chosen_decoders(machine, threads)
    for form in sorted({*decoder_formats[:1], *decoder_formats[-1:]}):
        yield decoder_of(form, DECODERS[-1], threads, DECODER)._replace(kv_heads=GROUPED_DECODER_KV_HEADS)
    for kv in machine.caches if machine.fused else ():
        for kv_heads in QUANTIZED_KV_HEADS:
            yield attention_of(threads, kv_heads=kv_heads, kv=kv)
    for kv_heads in ATTENTION_KV_HEADS[1:]:
        yield attention_of(threads, kv_heads=kv_heads)
    for form in decoder_formats:
        sizes = decoder_sizes(form, LARGE_WIDTH, 2 * LARGE_WIDTH)
        layers = nearest(sizes, beyond_bytes(machine), allowed_bytes(machine))
        yield decoder_of(form, (LARGE_WIDTH, 2 * LARGE_WIDTH, layers, LARGE_HEADS), threads, LARGE_DECODER)
    if machine.fused:
        yield from shared_decoders(machine, threads)
    for form in machine.formats:
        if form != "int4":  # whose head has 8 bits
            yield from heads_alone(machine, form, threads)
        for shape in PREFILL_SHAPES[2:]:
            yield within(machine, form, shape, threads)
    yield attention_of(threads, NARROW_ATTENTION)._replace(columns=ATTENTION_WIDTHS[1])
    side = sweep_side(machine)
    for share in SWEEP:
        if share * cache < beyond_bytes(machine):
            yield beyond(machine, "fp32", (side, side), threads, share * cache)
    if machine.fused:
        form, (width, ffn, _, heads) = machine.formats[-1], DECODERS[-1]
        sizes = decoder_sizes(form, width, ffn)
        for count in sorted({nearest(sizes, share * cache) for share in DECODER_SWEEP
                             if share * cache >= min(sizes.values())}):
            yield decoder_of(form, (width, ffn, count, heads), threads, LONG_DECODE)
    for form in machine.formats:
        yield beyond(machine, form, SMALL_SQUARE, threads, beyond_bytes(machine) / SMALL_SHARE)


def attention_of(threads: int = 1, runs: Tuple[Tuple[int, int], ...] = GROUPED_ATTENTION, kv_heads: int = 0,
                 kv: str = "fp32") -> Task:
    """Return a task of attention. kv_heads 0: as many as query heads. kv: the format of the cache."""
    return Task("attention", "fp32", columns=ATTENTION_WIDTHS[0], heads=ATTENTION_HEADS, count=ATTENTIONS,
                threads=threads, runs=runs, kv_heads=kv_heads, kv=kv)


def chosen_attentions(threads: int = 1) -> Iterator[Task]:
    for kv_heads in CHOSEN_KV_HEADS:
        yield Task("attention", "fp32", columns=CHOSEN_WIDTH, heads=CHOSEN_HEADS, count=CHOSEN_ATTENTIONS,
                   threads=threads, runs=CHOSEN_ATTENTION, kv_heads=kv_heads)


def own_attentions(threads: int = 1) -> Iterator[Task]:
    """Yield the attentions that this project's kernels compute."""
    for width, heads, count, kv_heads, kv in GROUPS:
        runs = CHOSEN_ATTENTION if width == CHOSEN_WIDTH else GROUPED_ATTENTION
        yield Task("attention", "fp32", columns=width, heads=heads, count=count, threads=threads, runs=runs,
                   kv_heads=kv_heads, kv=kv, by_groups=True)


def decoder_of(form: str, shape: Sequence[int], threads: int = 1, runs: Tuple[Tuple[int, int], ...] = ()) -> Task:
    """Return a task of a whole decoder. shape: (width, FFN width, layers, heads)."""
    width, ffn, layers, heads = shape
    return Task("decoder", form, ffn, width, heads, count=layers, threads=threads, runs=runs)


def within(machine: Machine, form: str, shape: Tuple[int, int], threads: int) -> Task:
    """Return a task of matrices that the cache surely holds; decode and prefill."""
    most = WITHIN * cache_bytes(machine)
    sizes = {count: size for count, size in linear_sizes(machine, form, shape).items() if count <= ALONGSIDE}
    return Task("linear", form, *shape, count=nearest(sizes, most, most), threads=threads, runs=PREFILL)


def beyond(machine: Machine, form: str, shape: Tuple[int, int], threads: int, size: float) -> Task:
    """Return a task of matrices of about `size` bytes; decode only."""
    count = nearest(linear_sizes(machine, form, shape), size, allowed_bytes(machine))
    return Task("linear", form, *shape, count=count, threads=threads, runs=DECODE)


def heads_alone(machine: Machine, form: str, threads: int) -> Iterator[Task]:
    """Yield a narrow head within the cache if one is small enough, and a wide one beyond it."""
    size = WITHIN * cache_bytes(machine)
    for columns, wished, most in ((NARROW_COLUMNS, size, size),
                                  (HEAD_COLUMNS, beyond_bytes(machine), allowed_bytes(machine))):
        sizes = {kernel.rows: kernel.weight_bytes
                 for kernel in graphs.kernels_of(machine.dialect, "head", form, columns=columns)}
        yield Task("head", form, nearest(sizes, wished, most), columns, threads=threads, runs=DECODE)


def chosen_decoders(machine: Machine, threads: int) -> Iterator[Task]:
    for width, ffn, layers, heads, kv_heads in CHOSEN_DECODERS if machine.fused else ():
        for form in machine.formats:
            task = decoder_of(form, (width, ffn, layers, heads), threads, CHOSEN_DECODER)._replace(kv_heads=kv_heads)
            if kernel_of(task, machine.dialect).weight_bytes <= allowed_bytes(machine):
                yield task


def shared_decoders(machine: Machine, threads: int) -> Iterator[Task]:
    shapes = [(form, *shape) for shape in SHARED_DECODERS for form in machine.formats]
    sizes = {kernel.columns: kernel.layer_bytes
             for kernel in graphs.kernels_of("fused", "decoder", "fp32", count=1, uses=SWEEP_USES)}
    widths = {nearest(sizes, share * cache_bytes(machine)) for share in SHARED_SWEEP}
    shapes += [("fp32", width, width, 1, SWEEP_USES, width // SWEEP_HEAD_SIZE) for width in sorted(widths)]
    for form, width, ffn, layers, uses, heads in shapes:
        task = decoder_of(form, (width, ffn, layers, heads), threads, LONG_DECODE)._replace(uses=uses)
        taken = layers * (kernel_of(task, machine.dialect).layer_bytes + uses * 2 * width * DECODER_CONTEXT * 4)
        if taken * SHARE_OF_FREE <= (machine.free_bytes or taken * SHARE_OF_FREE):
            yield task


def linear_sizes(machine: Machine, form: str, shape: Tuple[int, int]) -> Dict[int, int]:
    """Return the bytes of the shipped graphs of matrices of this shape, by the number of matrices."""
    rows, columns = shape
    kernels = graphs.kernels_of(machine.dialect, "linear", form, rows=rows, columns=columns)
    return {kernel.count: kernel.weight_bytes for kernel in kernels}


def decoder_sizes(form: str, width: int, ffn: int) -> Dict[int, int]:
    """Return the bytes of the layers' matrices of the shipped decoders of this shape, by the number of layers."""
    kernels = graphs.kernels_of("fused", "decoder", form, rows=ffn, columns=width, uses=1, kv_heads=0)
    return {kernel.count: kernel.count * kernel.layer_bytes for kernel in kernels}


def nearest(sizes: Dict[int, int], wished: float, most: float = math.inf) -> int:
    """Return the number whose size in bytes is nearest to `wished`, by their ratio. Sizes above `most` bytes are left
    out; if all are above, return the smallest."""
    smallest = min(sizes, key=lambda number: sizes[number])
    fitting = [number for number, size in sizes.items() if size <= most] or [smallest]
    return min(fitting, key=lambda number: abs(math.log(sizes[number] / wished)))


def cache_bytes(machine: Machine) -> int:
    return machine.cache_bytes or DEFAULT_CACHE_BYTES


def beyond_bytes(machine: Machine) -> int:
    """Return the bytes of weights that no cache holds, as far as memory allows."""
    return min(max(LEAST_BEYOND_BYTES, int(BEYOND * cache_bytes(machine))), allowed_bytes(machine))


def allowed_bytes(machine: Machine) -> int:
    """Return the largest weights that a graph may have on this machine."""
    return min(MOST_BEYOND_BYTES, machine.free_bytes // SHARE_OF_FREE or MOST_BEYOND_BYTES)


def sweep_side(machine: Machine) -> int:
    """Return the side of square matrices of which 10 to 40 fill the cache."""
    return next((side for side in SWEEP_SIDES if 40 * side * side <= cache_bytes(machine)), SWEEP_SIDES[-1])


def kernel_of(task: Task, dialect: str) -> Kernel:
    """Return the shipped graph of a task of any kind but `argmax`, which has none."""
    return graphs.kernel_of(dialect, task.kind, task.format, rows=task.rows, columns=task.columns, heads=task.heads,
                            count=task.count, uses=task.uses, kv_heads=task.kv_heads, kv=task.kv,
                            by_groups=task.by_groups)
