"""The decoders that `shape_training.py` trains, and the order in which it does. Drawn with a seed, not by a search."""

import itertools

import numpy as np

from merino_edge.families.designed import Architecture, Block

EVEN = 0.75  # a layer's weights, relative to the mean layer's, are within EVEN and 1 / EVEN
WEIGHTS = 128_000  # of the layers, in set a and in pairs
SIZES = 40_000, 400_000  # of set b
DEPTHS = 1, 2, 3, 4, 5, 6, 8, 10, 12, 16
WIDTHS = range(32, 385, 32)
RATIOS = 0.5, 6.0
STEP = 1 / 32  # of FFN ratios: an integer number of channels at each width
NEAR = 0.01  # of the requested number of weights
EACH = 4  # designs of set a for each depth; one layer has only three shapes, so three layers have five designs
VOCAB, CONTEXT, HEAD = 512, 256, 16
SHARED = (  # pairs: blocks, uses of each one's layer, width
    (1, 2, 96), (1, 3, 96), (1, 4, 64), (1, 6, 64), (2, 2, 64), (2, 3, 64), (3, 2, 64), (2, 4, 32),
)  # fmt: skip
UNSHARED_RATIO = 0.75
PRIOR = 0.46  # L uses of a layer are worth L^PRIOR layers: the law's constant when the list was made
GROUPED = (1, 160), (1, 128), (2, 96), (2, 64), (3, 64), (4, 64), (5, 64), (6, 64)  # pairs: layers, width
GROWING = (64, 96), (64, 128), (32, 96), (64, 64, 96), (32, 64, 96), (32, 32, 64, 64, 64)
REPEATED = "a-d01-0", "a-d02-0", "a-d04-0", "a-d06-0", "a-d10-0", "a-d16-0"  # these with five seeds
SEEDS = 5


def architecture(blocks, change="padding"):
    return Architecture(blocks=tuple(blocks), vocab=VOCAB, head_size=HEAD, context=CONTEXT, width_change=change)


def weights_of(arch):
    """Of the layers, as they are stored: without embedding and what changes a width."""
    return sum(stored_layers(block) * layer(block) for block in arch.blocks)


def stored_layers(block):
    return 1 if block.shared else block.depth


def layer(block):
    return 2 * block.width * (block.width + block.kv_width(HEAD) + block.ffn_width)


def ratio(weights, width, kv_width=None):
    """The FFN ratio with which one layer has these weights, in whole steps."""
    exact = weights / (2 * width**2) - 1 - (width if kv_width is None else kv_width) / width
    return round(exact / STEP) * STEP


def allowed(weights, low=RATIOS[0], high=RATIOS[1]):
    """Widths at which a layer of these weights has an FFN ratio of the space."""
    return [width for width in WIDTHS if low <= ratio(weights, width) <= high]


def depths(layers, blocks=4):
    whole, rest = divmod(layers, min(blocks, layers))
    return [whole + (block < rest) for block in range(min(blocks, layers))]


def uniform(weights, layers, width):
    return architecture([Block(width=width, ffn_ratio=ratio(weights / layers, width), depth=depth)
                         for depth in depths(layers)])  # fmt: skip


def uneven(weights, layers, random):
    """Blocks of drawn widths and sizes of layer, the last one making up the sum; None where the draw breaks a bound."""
    blocks, left = [], float(weights)
    cut = depths(layers)
    for index, depth in enumerate(cut):
        last = index == len(cut) - 1
        each = left / depth if last else weights / layers * random.uniform(EVEN, 1 / EVEN)
        widths = allowed(each)
        if not widths:
            return None
        width = int(random.choice(widths))
        blocks.append(Block(width=width, ffn_ratio=ratio(each, width), depth=depth))
        left -= depth * layer(blocks[-1])
    mean = weights / layers
    even = all(EVEN * mean <= layer(block) <= mean / EVEN for block in blocks)
    arch = architecture(blocks)
    return arch if even and abs(weights_of(arch) / weights - 1) <= NEAR else None


def mean_ratio(arch):
    return (sum(block.depth * block.ffn_width for block in arch.blocks)
            / sum(block.depth * block.width for block in arch.blocks))  # fmt: skip


def drawn(weights, layers, count, random):
    """`count` decoders, half of them of one shape of layer, FFN ratios spread from the lowest to the highest drawn."""
    plain = [uniform(weights, layers, width) for width in allowed(weights / layers)]
    plain = [arch for arch in plain if abs(weights_of(arch) / weights - 1) <= NEAR][: (count + 1) // 2]
    tried = (uneven(weights, layers, random) for _ in range(100))
    others = sorted({arch.shape(): arch for arch in tried if arch and arch not in plain}.values(), key=mean_ratio)
    indices = np.linspace(0, len(others) - 1, count - len(plain)).round().astype(int).tolist() if others else []
    return plain + [others[index] for index in dict.fromkeys(indices)]


def set_a(random):
    """EACH of every depth, within NEAR of WEIGHTS."""
    return [
        entry(f"a-d{layers:02}-{index}", "a", arch)
        for layers in DEPTHS for index, arch in enumerate(drawn(WEIGHTS, layers, EACH + (layers == 3), random))
    ]  # fmt: skip


def set_b(random):
    """Forty sizes, evenly in ln weights; of the depths that a size can have the one least used so far."""
    used, entries = dict.fromkeys(DEPTHS, 0), []
    for index, weights in enumerate(np.geomspace(*SIZES, 40)):
        order = sorted(random.permutation(DEPTHS).tolist(), key=used.__getitem__)
        layers, archs = next((layers, archs) for layers in order if (archs := drawn(weights, layers, 2, random)))
        used[layers] += 1
        arch = archs[-(index % 2)]
        entries.append(entry(f"b-{index:02}", "b", arch))
    return entries


def sharing_pairs():
    """L uses of one layer, and L layers, at equal width and depth and, by L^PRIOR, equal effective weights: that law
    predicts the same for both, so a difference is due to the exponent. The shared layer has the wider FFN."""
    for index, (blocks, uses, width) in enumerate(SHARED):
        small = Block(width=width, ffn_ratio=UNSHARED_RATIO, depth=uses)
        wide = ratio(layer(small) * uses ** (1 - PRIOR), width)
        large = Block(width=width, ffn_ratio=wide, depth=uses, shared=True)
        yield from pair("sharing", index, architecture([large] * blocks), architecture([small] * blocks))


def kv_pairs():
    """One KV head, and as many as query heads, at equal weights: what the keys leave, the FFN has."""
    for index, (layers, width) in enumerate(GROUPED):
        yield from pair("kv", index, *(
            architecture([Block(width=width, ffn_ratio=ratio(WEIGHTS / layers, width, kv_width), depth=layers,
                                kv_heads=None if kv_width == width else 1)])
            for kv_width in (HEAD, width)
        ))  # fmt: skip


def width_pairs():
    """Padded, and projected, at equal weights, including the weights of the projections."""
    for index, widths in enumerate(GROWING):
        paths = [*itertools.pairwise(widths), (widths[-1], widths[0])]
        projections = sum(before * after for before, after in paths if before != after)
        yield from pair("width", index, *(
            architecture([Block(width=width, ffn_ratio=common(WEIGHTS - spent, widths), depth=1) for width in widths],
                         change)
            for change, spent in (("padding", 0), ("projection", projections))
        ))  # fmt: skip


def common(weights, widths):
    """The FFN ratio with which layers of these widths have these weights in all."""
    return round((weights / sum(2 * width**2 for width in widths) - 2) / STEP) * STEP


def pair(kind, index, *members):
    for letter, arch in zip("xy", members, strict=True):
        yield entry(f"{kind}-{index}{letter}", kind, arch)


def entry(name, kind, arch):
    return {"name": name, "set": kind, "shape": arch.shape(), "weights": weights_of(arch),
            "mean_ffn_ratio": round(mean_ratio(arch), 3), "architecture": arch.model_dump(mode="json")}  # fmt: skip


def plan(seed):
    """Designs, and runs (name, seed) in their order: the pairs, set a, set b, then other seeds."""
    random = np.random.default_rng(seed)
    first, second = set_a(random), set_b(random)
    pairs = [*sharing_pairs(), *kv_pairs(), *width_pairs()]
    couples = [[one["name"], two["name"]] for one, two in zip(pairs[::2], pairs[1::2], strict=True)]
    names = random.permutation([each["name"] for each in first]).tolist()
    paired = [name for index in random.permutation(len(couples)) for name in couples[index]]
    sized = random.permutation([each["name"] for each in second]).tolist()
    runs = [(name, 0) for name in paired + names + sized] + [(name, 1) for name in names + paired]
    runs += [(name, seed) for seed in range(2, SEEDS) for name in REPEATED] + [(name, 1) for name in sized]
    return {"seed": seed, "designs": first + second + pairs, "runs": runs}
