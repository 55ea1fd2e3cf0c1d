"""Which score orders decoders as training does? Against published ones of many shapes and sizes.

    python bench/experiments/shapes.py --data FOLDER -o bench/results/shapes.json

FOLDER: `gem_hot_100b+.jsonl` and `gem_hot.jsonl` of the repository mcleish7/gemstone-scaling-laws (MIT), a line per
evaluation. Each decoder counts by its loss nearest to 100 billion tokens. Its layers have grouped attention (3 E^2
weights) and a gated FFN of ratio 4 (12 E^2). The law is scored leaving out the decoder that it predicts.

And two sets that the law was not fitted from: `summary_df.pickle.xz` of formll/resolving-scaling-law-discrepancies
(MIT), sixteen sizes; `arch_ppl_bench_s`, `_m` and `_l` of automl/HW-GPT-Bench (Apache 2.0; in its history), subnetworks
of three supernets. Reading a pickle runs what it holds. A minute.
"""

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pandas
from scipy.stats import spearmanr
from write_record import write_record

from merino_edge.design.existing import BLOCKS
from merino_edge.design.law import effective_weights, ln_loss
from merino_edge.design.paper.score import MERINO, effectiveness_loss, linear_entropy
from merino_edge.design.score import MEASURED

TOKENS, NEAR = 100e9, 5e9
LAYER = 15  # weights per width^2
BOOTSTRAPS = 2_000
TABLE = 2 * 50304  # rows of embedding and head
LOW, HIGH = 90e6, 120e6  # the group of about 100 M weights, embedding and head counted
EPS = 64.0  # of law A
SIXTEEN = ((96, 3), (128, 4), (160, 5), (224, 6), (288, 8), (320, 9), (384, 10), (480, 12), (576, 14), (640, 15),
           (704, 18), (832, 21), (1024, 23), (1120, 26), (1312, 26), (1504, 30))  # widths and layers  # fmt: skip


def decoders(folder):
    """(width, layers, loss) of each, by its number of weights."""
    nearest = {}
    for name in ("gem_hot_100b+.jsonl", "gem_hot.jsonl"):
        for line in (folder / name).read_text().splitlines():
            row = json.loads(line)
            away, key = abs(row["tokens"] - TOKENS), (row["width"], row["depth"])
            if away <= NEAR and (key not in nearest or away < nearest[key][0]):
                nearest[key] = away, row["final_loss"]
    rows = [(width, layers, loss) for (width, layers), (_, loss) in nearest.items()]
    return sorted(rows, key=lambda each: each[0] ** 2 * each[1])


def entropy(width, layers, eps=1.0, blocks=BLOCKS, scoring=MERINO):
    """As the paper's search adds it up over blocks of equal depth; the FFN's third matrix is counted. No blocks:
    without gamma."""
    attention = 2 * linear_entropy(width, width, eps) + 2 * linear_entropy(width, width // 2, eps)
    layer = scoring.attention_weight * attention + scoring.ffn_weight * 3 * linear_entropy(width, 4 * width, eps)
    if not blocks:
        return layers * layer
    depths = [layers // blocks + (block < layers % blocks) for block in range(blocks)]
    return sum((1 - effectiveness_loss(width, depth, scoring)) * depth * layer for depth in depths)


def terms(rows):
    """Columns of the regression: 1, ln N, a, a^2 with a = ln(width / layers)."""
    width, layers, _ = np.array(rows).T
    aspect = np.log(width / layers)
    return np.stack([np.ones(len(rows)), np.log(LAYER * width**2 * layers), aspect, aspect**2], axis=1)


def fitted(x, y):
    return np.linalg.lstsq(x, y, rcond=None)[0]


def constants(coefficients):
    _, size, linear, square = coefficients
    return {"alpha": -size, "kappa": square, "aspect": -linear / (2 * square)}


def left_out(x, y):
    """What a fit to all others predicts of each decoder."""
    everyone = np.arange(len(y))
    return np.array([x[each] @ fitted(x[everyone != each], y[everyone != each]) for each in everyone])


def scores_of(rows):
    x, y = terms(rows), np.log([loss for *_, loss in rows])
    weights = np.exp(x[:, 1])
    kinds = {"merino": {}, "merino, one block": {"blocks": 1}, "entropy without gamma": {"blocks": 0},
             "law A": {"blocks": 0, "eps": EPS}}  # fmt: skip
    scores = {
        name: np.array([entropy(width, layers, **keys) for width, layers, _ in rows]) for name, keys in kinds.items()
    }
    scores["number of weights"] = weights
    losses = ln_loss(weights, np.array([layers for _, layers, _ in rows]), 0.0, MEASURED.constants)
    scores["measured"] = effective_weights(losses, MEASURED.constants)
    scores["measured, leave one out"] = -left_out(x, y)
    return scores


def interval(values):
    return [round(float(value), 4) for value in np.nanpercentile(values, (2.5, 97.5))]


def correlations(scores, losses, random):
    """Spearman with minus the loss, its bootstrap interval, and the interval of its difference to counting weights."""
    draws = [random.integers(0, len(losses), len(losses)) for _ in range(BOOTSTRAPS)]
    drawn = {name: np.array([spearmanr(values[draw], -losses[draw]).statistic for draw in draws])
             for name, values in scores.items()}  # fmt: skip
    return {
        name: {
            "spearman": round(float(spearmanr(values, -losses).statistic), 3), "interval": interval(drawn[name]),
            "less_number_of_weights": interval(drawn[name] - drawn["number of weights"]),
        }
        for name, values in scores.items()
    }  # fmt: skip


def constant_rows(rows, random):
    x, y = terms(rows), np.log([loss for *_, loss in rows])
    best = constants(fitted(x, y))
    drawn = [constants(fitted(x[draw], y[draw]))
             for draw in (random.integers(0, len(y), len(y)) for _ in range(BOOTSTRAPS))]  # fmt: skip
    error = float(np.abs(y - left_out(x, y)).mean())
    sizes = x[:, :2]
    return {
        **{name: {"value": round(float(value), 4), "interval": interval([each[name] for each in drawn])}
           for name, value in best.items()},
        "leave_one_out": {"law": round(error, 5), "weights_alone": round(
            float(np.abs(y - left_out(sizes, y)).mean()), 5)},
    }  # fmt: skip


def sixteen_sizes(path, tokens):
    """Weights, layers, and losses at each number of tokens, with a constant learning rate."""
    runs = pandas.read_pickle(path).query("hparams == 'tuned' and decay == 'const'").data.iloc[0]
    points = pandas.concat([pandas.DataFrame({"size": run.orig_n, "tokens": run.orig_t, "loss": run.orig_loss})
                            for run in runs.itertuples()]).sort_values("tokens")  # fmt: skip
    width, layers = np.array(SIXTEEN).T
    weights = (4 * width + 3 * 256 * -(-(8 * width // 3) // 256)) * width * layers
    curves = [points[points["size"] == size] for size in weights + 50432 * width]
    losses = [np.array([np.interp(np.log(count), np.log(one.tokens), one.loss) for one in curves]) for count in tokens]
    return weights, layers, losses


def subnets(folder):
    """Weights, layers and losses. A layer has heads of 64 channels and an FFN without a gate."""
    rows = [row for file in sorted(folder.glob("ppl_observ*.pkl")) for row in pickle.loads(file.read_bytes())]
    weights, layers = [], np.array([row["arch"]["sample_n_layer"] for row in rows])
    for row, depth in zip(rows, layers, strict=True):
        width, heads, ratios = (row["arch"][f"sample_{key}"] for key in ("embed_dim", "n_head", "mlp_ratio"))
        weights.append(width * (4 * 64 * sum(heads[:depth]) + 2 * width * sum(ratios[:depth])))
    return np.array(weights), layers, np.log([row["perplexity"] for row in rows])


def beside_weights(weights, layers, losses, random):
    law = -ln_loss(weights, layers, 0.0, MEASURED.constants)
    return {"decoders": len(losses), **correlations({"number of weights": weights, "measured": law}, losses, random)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", type=Path, dest="out", required=True)
    options = parser.parse_args()
    rows = decoders(options.data)
    scores, losses = scores_of(rows), np.array([loss for *_, loss in rows])
    stored = scores["number of weights"] + TABLE * np.array([width for width, *_ in rows])
    group = (stored >= LOW) & (stored <= HIGH)
    random = np.random.default_rng(0)
    summary = {
        "all": {"decoders": len(rows), **correlations(scores, losses, random)},
        "about_100m": {"decoders": int(group.sum()), **correlations(
            {name: values[group] for name, values in scores.items()}, losses[group], random)},
        "constants": constant_rows(rows, random),
    }  # fmt: skip
    weights, layers, at_tokens = sixteen_sizes(options.data / "summary_df.pickle.xz", (0.5e9, 1.5e9))
    summary["sixteen_sizes_0.5b_tokens"] = beside_weights(weights, layers, at_tokens[0], random)
    summary["sixteen_sizes_1.5b_tokens"] = beside_weights(weights, layers, at_tokens[1], random)
    for scale in "sml":
        summary[f"hw_gpt_bench_{scale}"] = beside_weights(*subnets(options.data / f"arch_ppl_bench_{scale}"), random)
    drawn = {name: scores[name] for name in ("merino", "number of weights", "measured")}  # docs/pictures/shapes.svg
    decoder_rows = [
        {"width": width, "layers": layers, "loss": round(loss, 4), "weights": LAYER * width**2 * layers,
         **{name: float(f"{values[index]:.6g}") for name, values in drawn.items()}}
        for index, (width, layers, loss) in enumerate(rows)
    ]  # fmt: skip
    claim = "How scores order published decoders by their loss; the constants of the score `measured`"
    command = "python bench/experiments/shapes.py --data FOLDER"
    content = {"machine": "any: no timing", "summary": summary, "rows": decoder_rows}
    write_record(options.out, content, claim, command)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
