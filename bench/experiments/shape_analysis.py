"""What the runs of `shape_training.py` say so far, by the tests of docs/decisions/shape-training.md."""

import math
from collections import defaultdict
from io import StringIO

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from shapes import constants, fitted

from merino_edge.design.existing import block_weights, existing_score
from merino_edge.design.law import CONSTANTS, LAYER_WEIGHTS, worth
from merino_edge.design.score import MEASURED, MERINO
from merino_edge.families.designed import Architecture

DRAWS = 10_000
FEWEST = 8  # designs for a correlation
FEWEST_FITTED = 12  # for the law's four constants
SHARES = "0.25", "0.5", "1"


def losses(rows, share="1"):
    """{name: {seed: mean over the texts of ln bits per byte}}"""
    by_name = defaultdict(dict)
    for row in rows:
        by_text = row["bits_per_byte"][share].values()
        by_name[row["name"]][row["seed"]] = float(np.mean([math.log(value) for value in by_text]))
    return by_name


def layers(arch):
    return sum(block.depth for block in arch.blocks)


def effective(arch, scoring=MEASURED):
    """Effective weights by the measured law: shared layers count less often than they are used."""
    pairs = zip(arch.blocks, block_weights(arch), strict=True)
    return sum(worth(block.depth, block.shared, scoring.constants) * weights for block, weights in pairs)


def scores(designs):
    """{score: values} of some designs of the list."""
    archs = [Architecture.model_validate(each["architecture"]) for each in designs]
    stored = np.array([each["weights"] for each in designs], float)
    return {
        "measured": np.array([existing_score(arch, MEASURED) for arch in archs]),
        "merino": np.array([existing_score(arch, MERINO) for arch in archs]),
        "number of weights": stored,
        "weights with embedding": stored + [arch.vocab * arch.embed_width for arch in archs],
    }


def spearman(left, right):
    """Of the rows of two arrays [draws, n]."""
    left, right = (stats.rankdata(each, axis=1) for each in (left, right))
    left, right = (each - each.mean(axis=1, keepdims=True) for each in (left, right))
    size = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return np.divide((left * right).sum(axis=1), size, out=np.full(len(left), np.nan), where=size > 0)


def interval(values):
    return [round(float(value), 4) for value in np.nanpercentile(values, (2.5, 97.5))]


def correlations(scored, loss, random):
    """rho of each score with minus the loss, and the paired differences of `measured`, with bootstrap intervals."""
    if len(loss) < FEWEST:
        return None
    draws = random.integers(0, len(loss), (DRAWS, len(loss)))
    drawn = {name: spearman(values[draws], -loss[draws]) for name, values in scored.items()}
    whole = {name: float(spearman(values[None], -loss[None])[0]) for name, values in scored.items()}

    def row(value, values):
        return {"value": round(value, 3), "interval": interval(values)}

    return {
        "rho": {name: row(whole[name], drawn[name]) for name in scored},
        "measured_less": {
            name: row(whole["measured"] - whole[name], drawn["measured"] - drawn[name])
            for name in scored if name != "measured"
        },
    }  # fmt: skip


def terms(archs):
    """Columns of the law's regression: 1, ln N, a, a^2."""
    amount, depth = np.array([effective(arch) for arch in archs]), np.array([layers(arch) for arch in archs])
    aspect = np.log(np.sqrt(amount / (LAYER_WEIGHTS * depth)) / depth)
    return np.stack([np.ones(len(archs)), np.log(amount), aspect, aspect**2], axis=1)


def law(designs, loss, random):
    """The law's constants fitted to these losses, and how the rest goes with the FFN ratio (per doubling)."""
    if len(loss) < FEWEST_FITTED:
        return None
    x = terms([Architecture.model_validate(each["architecture"]) for each in designs])
    ratio = np.log2([each["mean_ffn_ratio"] for each in designs])

    def fit(at):
        wide = np.column_stack([x[at], ratio[at]])
        return {**constants(fitted(x[at], loss[at])), "per_doubling_of_ffn_ratio": fitted(wide, loss[at])[-1]}

    best = fit(slice(None))
    drawn = [fit(draw) for draw in random.integers(0, len(loss), (2_000, len(loss)))]
    return {name: {"value": round(float(value), 4), "interval": interval([each[name] for each in drawn])}
            for name, value in best.items()}  # fmt: skip


def pairs(kind, designs, loss):
    """(first design, second design, difference of ln loss, first less second) of the pairs that are done: over the
    seeds that both have."""
    members = [each for each in designs.values() if each["set"] == kind]
    for one, two in zip(members[::2], members[1::2], strict=True):
        seeds = loss[one["name"]].keys() & loss[two["name"]].keys()
        if seeds:
            yield one, two, float(np.mean([loss[one["name"]][seed] - loss[two["name"]][seed] for seed in seeds]))


def exponent(shared, unshared, difference, alpha):
    """At which the law would say of this pair what was measured."""
    block = Architecture.model_validate(shared["architecture"]).blocks[0]
    worth = unshared["weights"] * math.exp(-difference / alpha) / shared["weights"]
    return math.log(worth) / math.log(block.depth)


def per_halving(grouped, difference):
    arch = Architecture.model_validate(grouped["architecture"])
    return difference / math.log2(arch.blocks[0].width / arch.blocks[0].kv_width(arch.head_size))


def over_pairs(values):
    """Mean and 95 % interval (Student's t)."""
    values = list(values)
    if len(values) < 2:
        return {"pairs": len(values), "value": None, "interval": None, "each": [round(each, 5) for each in values]}
    mean, error = float(np.mean(values)), float(stats.sem(values))
    ends = stats.t.interval(0.95, len(values) - 1, mean, error) if error else (mean, mean)
    return {"pairs": len(values), "value": round(mean, 5), "interval": [round(float(end), 5) for end in ends],
            "each": [round(each, 5) for each in values]}  # fmt: skip


def against(listed, rows, base="uniform-most-weights"):
    """Of each rival in a list: ln loss less that of `base`, over the seeds that both have."""
    loss = losses(rows)

    def less(name):
        return [loss[name][seed] - loss[base][seed] for seed in sorted(loss[name].keys() & loss[base].keys())]

    differences = {each["name"]: over_pairs(less(each["name"])) for each in listed["designs"] if each["name"] != base}
    return {"runs": {"done": len(rows), "of": len(listed["runs"])}, "less_than": base, **differences}


def noise(loss, names):
    """Between the first two seeds, over the designs that have both."""
    both = np.array([[loss[name][0], loss[name][1]] for name in names if {0, 1} <= loss[name].keys()]).reshape(-1, 2)
    found = {"designs_with_two_seeds": len(both)}
    if len(both):
        found["sd_of_ln_loss_by_seed"] = round(float(np.sqrt(np.mean((both[:, 0] - both[:, 1]) ** 2) / 2)), 5)
    if len(both) >= FEWEST:
        rho = float(spearman(both[None, :, 0], both[None, :, 1])[0])
        found |= {"rho_between_seeds": round(rho, 3), "ceiling": round(math.sqrt(max(0.0, rho)), 3)}
    return found


def analyze(listed, rows):
    """The summary of a record, of whatever runs are done."""
    designs = {each["name"]: each for each in listed["designs"]}
    loss, random = losses(rows), np.random.default_rng(0)
    done = {kind: [each for name, each in designs.items() if each["set"] == kind and name in loss]
            for kind in dict.fromkeys(each["set"] for each in designs.values())}  # fmt: skip

    def mean(chosen, share="1"):
        by_seed = losses(rows, share)
        return np.array([np.mean(list(by_seed[each["name"]].values())) for each in chosen])

    def of_set(kind):
        return correlations(scores(done[kind]), mean(done[kind]), random)

    both = done["a"] + done["b"]
    fit = law(both, mean(both), random)
    alpha = fit["alpha"]["value"] if fit and len(done["b"]) >= FEWEST else CONSTANTS["alpha"].value
    return {
        "runs": {"done": len(rows), "of": len(listed["runs"])},
        "designs": {kind: {"done": len(members), "of": sum(each["set"] == kind for each in designs.values())}
                    for kind, members in done.items()},
        "set_a": of_set("a"), "set_b": of_set("b"),
        "rho_with_the_final_loss": {
            share: round(float(spearman(mean(done["a"], share)[None], mean(done["a"])[None])[0]), 3)
            for share in SHARES[:-1]
        } if len(done["a"]) >= FEWEST else None,
        "noise": noise(loss, [each["name"] for each in done["a"]]),
        "law": fit,
        "sharing_exponent": {
            "alpha": alpha, "alpha_from": "these runs" if alpha != CONSTANTS["alpha"].value else "published",
            **over_pairs(exponent(*each, alpha) for each in pairs("sharing", designs, loss)),
        },
        "kv_loss_per_halving": over_pairs(per_halving(one, less) for one, _, less in pairs("kv", designs, loss)),
        "padded_less_projected": over_pairs(less for *_, less in pairs("width", designs, loss)),
    }  # fmt: skip


def picture(listed, rows):
    """An SVG: loss against scores and depth; red: layers of unequal shape. None before there is anything to see."""
    loss = {name: float(np.mean(list(by_seed.values()))) for name, by_seed in losses(rows).items()}
    panels = []
    for kind, names in (("a", ("measured", "merino", "layers")), ("b", ("measured", "number of weights"))):
        chosen = [each for each in listed["designs"] if each["set"] == kind and each["name"] in loss]
        if len(chosen) < 2:
            continue
        archs = [Architecture.model_validate(each["architecture"]) for each in chosen]
        values_of = {**scores(chosen), "layers": np.array([layers(arch) for arch in archs], float)}
        uneven = [len({(block.width, block.ffn_ratio) for block in arch.blocks}) > 1 for arch in archs]
        values = np.exp([loss[each["name"]] for each in chosen])
        panels += [(f"set {kind}: {name}", np.maximum(values_of[name], values_of[name].max() / 1e3), values, uneven)
                   for name in names]  # fmt: skip
    caption = "ln score; upward: ln bits per byte. Red: layers of unequal shape"
    return drawing(panels, caption) if panels else None


def drawing(panels, caption):
    """An SVG: loss against each score. panels: (title, scores, losses, whether the layers are of unequal shape)."""
    figure, out = Figure(figsize=(3.5 * len(panels), 4), layout="constrained"), StringIO()
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, values, losses, uneven) in zip(row, panels, strict=True):
        axes.scatter(np.log(values), np.log(losses), c=["#c2410c" if each else "#1d4ed8" for each in uneven])
        axes.set_title(title)
    figure.supxlabel(caption)
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def table(listed, rows):
    """A row for each design: its loss by share of the tokens, and the scores."""
    chosen = [each for each in listed["designs"] if each["name"] in losses(rows)]
    by_share = {share: losses(rows, share) for share in SHARES}
    scored = scores(chosen)
    return [
        {"name": each["name"], "shape": each["shape"], "weights": each["weights"],
         "bits_per_byte": {share: round(math.exp(np.mean(list(by_share[share][each["name"]].values()))), 4)
                           for share in SHARES},
         "seeds": sorted(by_share["1"][each["name"]]),
         "scores": {name: float(f"{values[index]:.6g}") for name, values in scored.items()}}
        for index, each in enumerate(chosen)
    ]  # fmt: skip
