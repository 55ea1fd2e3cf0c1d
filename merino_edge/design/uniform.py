"""Uniform decoders: one width, FFN ratio and number of KV heads, no shared weights. What a search is compared with, and
what it begins with."""

from collections.abc import Iterator

from merino_edge.design.program import Program, Solution


def uniform(program: Program) -> Iterator[Solution]:
    """The best for each number of layers within the limits."""
    shapes = sorted({shape for shape, _ in program.place})
    for layers in range(program.blocks, program.blocks * int(program.layers.max()) + 1):
        best: list[int] | None = None
        most = 0.0  # for a fixed number of layers the score rises with the weights
        for shape in shapes:
            choice = cut(program, shape, layers, program.blocks)
            weights = float(program.score[choice].sum()) if choice else 0.0
            if choice and weights > most and program.fits(choice):
                best, most = choice, weights
        if best:
            yield program.solution(best)


def cut(program: Program, shape: int, layers: int, blocks: int) -> list[int] | None:
    """The options of `layers` equal layers in blocks of nearly equal depth; None where the space has no such block."""
    base, more = divmod(layers, max(1, blocks))
    found = [program.place.get((shape, base + (block < more))) for block in range(blocks)]
    return None if None in found else [option for option in found if option is not None]
