"""The graphs that a probe times on this machine: within the last-level cache and beyond it, by format and thread count.

Sizes follow the machine: its cache and its free memory. The most informative graphs come first, since a slow board may
not get to the end of the list.
"""
from typing import Iterator, List, NamedTuple, Sequence, Tuple

from merino_bench.probe import graphs as kernels
from merino_bench.probe.decoder_graph import decoder
from merino_bench.probe.graphs import Kernel

MB = 2 ** 20
WITHIN, BEYOND = 0.25, 3.0  # of the last-level cache: surely inside it, surely outside
SWEEP = (0.4, 0.6, 0.8, 1.0, 1.4, 2.0)  # of the cache, in between: where reads begin to miss, and where all do
DECODER_SWEEP = (0.3, 0.6, 1.0, 1.6)  # the same, with what else a decoder reads beside its weights
DEFAULT_CACHE_BYTES = MB  # where the machine does not say
LEAST_BEYOND_BYTES, MOST_BEYOND_BYTES = 16 * MB, 128 * MB
SHARE_OF_FREE = 6  # a session holds its weights about twice while it opens
ALONGSIDE = 12  # matrices of a graph whose prefill is timed
PREFILL_TOKENS = (16, 64, 256)
DECODE: Tuple[Tuple[int, int], ...] = ((0, 1),)  # (cached, new) tokens
PREFILL = DECODE + tuple((0, tokens) for tokens in PREFILL_TOKENS)
HEAD_COLUMNS, NARROW_COLUMNS, LEAST_HEAD_ROWS, DEFAULT_VOCAB = 512, 128, 4096, 50257
ATTENTION_CONTEXT = 2048
ATTENTION = ((0, 1), (256, 1), (1024, 1), (2047, 1), (0, 16), (0, 64), (0, 256), (256, 256))
LONG_DECODE = ((0, 1), (512, 1))
DECODER = ((0, 1), (512, 1), (0, 16), (0, 64), (0, 256))
# (width, FFN width, layers, heads) of whole decoders: small ones, which large caches hold, and one beyond the caches
DECODERS = ((192, 576, 3, 6), (256, 1024, 4, 8), (640, 960, 2, 10))
# (width, FFN width, layers, uses of each layer, heads): the search often shares layers, and then keys and values take
# more memory than the weights
SHARED_DECODERS = ((256, 384, 3, 4, 8), (512, 512, 3, 4, 8), (768, 1152, 3, 6, 12))
SHARED_SWEEP = (0.3, 0.5, 0.75)  # a layer's size by the cache: where its second use begins to miss
SWEEP_USES, MOST_WIDTH = 6, 1024
MOST_LAYERS = 64  # of a timed decoder, as in a block of a design; a cache of 200 MB would ask for more
LARGE_WIDTH, LARGE_HEADS, LARGE_DECODER = 768, 12, ((0, 1), (512, 1), (0, 64))
DECODER_VOCAB, DECODER_CONTEXT = 4096, 1024
NARROW_ATTENTION = ((0, 1), (1024, 1), (0, 64), (0, 256))


class Task(NamedTuple):
    """One graph on so many threads, run for each (cached, new) number of tokens."""
    kind: str  # linear, head, attention, norm, activation, call, choose or decoder (columns: width, rows: FFN width)
    format: str
    rows: int
    columns: int
    heads: int
    count: int  # type: ignore[assignment] # operators in the graph
    threads: int
    runs: Tuple[Tuple[int, int], ...]
    uses: int = 1  # of each of a decoder's layers, one after the other, each with a cache of its own


class Machine(NamedTuple):
    cache_bytes: int  # last level, 0: not known
    free_bytes: int  # 0: not known
    threads: Tuple[int, ...]
    formats: Tuple[str, ...]
    fused: bool  # which dialect


def tasks(machine: Machine) -> List[Task]:
    """Interleaved over the thread counts, so that the most informative graphs of each come first."""
    lists = [list(tasks_of(machine, threads)) for threads in machine.threads]
    return [one[place] for place in range(max(map(len, lists))) for one in lists if place < len(one)]


def tasks_of(machine: Machine, threads: int) -> Iterator[Task]:
    beyond, within = beyond_bytes(machine), WITHIN * (machine.cache_bytes or DEFAULT_CACHE_BYTES)

    def linear(form: str, rows: int, columns: int, size: float, runs: Sequence[Tuple[int, int]]) -> Task:
        each = kernels.matrix_bytes(form, rows, columns, machine.fused)
        most = ALONGSIDE if len(runs) > 1 else 10 ** 6
        return Task("linear", form, rows, columns, 0, max(1, min(most, int(size / each))), threads, tuple(runs))

    yield Task("call", "fp32", 0, 64, 0, 1, threads, DECODE)
    yield Task("choose", "fp32", DEFAULT_VOCAB, 0, 0, 1, threads, DECODE)
    yield Task("norm", "fp32", 0, 512, 0, 16, threads, PREFILL)
    yield Task("activation", "fp32", 0, 1024, 0, 16, threads, PREFILL)
    for form in machine.formats:
        yield linear(form, 640, 640, within, PREFILL)
        yield linear(form, 640, 640, beyond, DECODE)
        yield linear(form, 256, 256, within, PREFILL)
    yield Task("attention", "fp32", 0, 512, 8, 2, threads, ATTENTION)
    for width, ffn, layers, heads in DECODERS:
        for form in machine.formats if machine.fused else ():
            yield Task("decoder", form, ffn, width, heads, layers, threads, DECODER)
    for form in machine.formats if machine.fused else ():
        layers = max(1, min(MOST_LAYERS, beyond // layer_bytes(form, LARGE_WIDTH, 2 * LARGE_WIDTH)))
        yield Task("decoder", form, 2 * LARGE_WIDTH, LARGE_WIDTH, LARGE_HEADS, layers, threads, LARGE_DECODER)
    yield from shared_decoders(machine, threads) if machine.fused else ()
    for form in machine.formats:
        if form != "int4":  # whose head has 8 bits
            for size, columns in ((within, NARROW_COLUMNS), (beyond, HEAD_COLUMNS)):
                rows = int(size / kernels.matrix_bytes(form, 1, columns, machine.fused))
                yield Task("head", form, max(LEAST_HEAD_ROWS, rows), columns, 0, 1, threads, DECODE)
        yield linear(form, 1920, 640, within, PREFILL)
        yield linear(form, 640, 1920, within, PREFILL)
        yield linear(form, 576, 576, within, PREFILL)  # blocks of 64
    yield Task("attention", "fp32", 0, 256, 8, 2, threads, NARROW_ATTENTION)  # heads of 32
    side = sweep_side(machine)
    for share in SWEEP:
        size = share * (machine.cache_bytes or DEFAULT_CACHE_BYTES)
        if size < beyond:
            yield linear("fp32", side, side, size, DECODE)
    width, ffn, _, heads = DECODERS[-1]
    each, cache = layer_bytes(machine.formats[-1], width, ffn), machine.cache_bytes or DEFAULT_CACHE_BYTES
    counts = {min(MOST_LAYERS, int(share * cache / each)) for share in DECODER_SWEEP} if machine.fused else set()
    for count in sorted(counts - {0}):
        yield Task("decoder", machine.formats[-1], ffn, width, heads, count, threads, LONG_DECODE)
    for form in machine.formats:
        yield linear(form, 256, 256, beyond / 4, DECODE)


def shared_decoders(machine: Machine, threads: int) -> Iterator[Task]:
    shapes = [(form, *shape) for shape in SHARED_DECODERS for form in machine.formats]
    widths = {width_of(share * (machine.cache_bytes or DEFAULT_CACHE_BYTES)) for share in SHARED_SWEEP}
    shapes += [("fp32", width, width, 1, SWEEP_USES, width // 64) for width in sorted(widths)]
    for form, width, ffn, layers, uses, heads in shapes:
        taken = layers * (layer_bytes(form, width, ffn) + uses * 2 * width * DECODER_CONTEXT * 4)
        if taken * SHARE_OF_FREE <= (machine.free_bytes or taken * SHARE_OF_FREE):
            yield Task("decoder", form, ffn, width, heads, layers, threads, LONG_DECODE, uses)


def width_of(size: float) -> int:
    """Of a layer in fp32, its FFN as wide as itself, whose matrices take so many bytes; a multiple of 64."""
    return min(MOST_WIDTH, max(64, int((size / layer_bytes("fp32", 1, 1)) ** 0.5) // 64 * 64))


def layer_bytes(form: str, width: int, ffn: int) -> int:
    """Of a decoder's layer, in `fused`."""
    square, wide = (kernels.matrix_bytes(form, rows, width, True) for rows in (width, ffn))
    return 4 * square + 2 * wide


def beyond_bytes(machine: Machine) -> int:
    """Weights that no cache holds, as far as memory allows."""
    wanted = max(LEAST_BEYOND_BYTES, BEYOND * (machine.cache_bytes or DEFAULT_CACHE_BYTES))
    allowed = min(MOST_BEYOND_BYTES, machine.free_bytes // SHARE_OF_FREE or MOST_BEYOND_BYTES)
    return int(min(wanted, allowed))


def sweep_side(machine: Machine) -> int:
    """A square matrix of which some twenty fill the cache."""
    sides = [side for side in (640, 512, 256, 128) if 80 * side * side <= (machine.cache_bytes or DEFAULT_CACHE_BYTES)]
    return sides[0] if sides else 64


def kernel_of(task: Task, fused: bool) -> Kernel:
    if task.kind == "decoder":
        return decoder(task.format, task.columns, task.rows, task.count, task.heads, DECODER_VOCAB, DECODER_CONTEXT,
                       task.uses)
    if task.kind == "linear":
        return kernels.linears(task.format, task.rows, task.columns, task.count, fused)
    if task.kind == "head":
        return kernels.head(task.format, task.rows, task.columns, fused)
    if task.kind == "attention":
        return kernels.attentions(task.columns, task.heads, ATTENTION_CONTEXT, task.count, fused)
    return kernels.vectors(task.kind, task.columns, task.count, fused)
