"""How loss depends on the vocabulary at equal text: a fit to published training runs.

    python bench/experiments/vocabulary.py --data exp_data.csv -o bench/results/vocabulary.json

exp_data.csv: of the repository sail-sg/scaling-with-vocab (Tao et al. 2024, arXiv 2407.13623), a line per evaluation of
decoders of 33 M to 1.1 B weights without embedding, each with ten vocabularies. Losses are normalized by the unigram's.
They are compared at the most text that all vocabularies of a size saw. Per size the loss is a constant plus
curve x loss x (ln(weights of the embedding / best ones))^2, where the best ones are a power of the other weights. Loss:
of the Gemstones at that size. Intervals: the extremes of leaving out one size. Seconds.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from write_record import write_record

LAYERS = 33e6  # weights at which the best embedding is stated


def points(path):
    """(weights, embedding's weights, loss) of each size and vocabulary, at equal text."""
    runs = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            numbers = {name: float(value) for name, value in row.items()}
            runs[numbers["Non_vocab_parameters"], numbers["vocab_size"]].append(numbers)
    rows = []
    for weights in sorted({weights for weights, _ in runs}):
        own = {vocab: run for (size, vocab), run in runs.items() if size == weights}
        for run in own.values():
            run.sort(key=lambda row: row["num_characters"])
        text = min(run[-1]["num_characters"] for run in own.values())
        for vocab, run in sorted(own.items()):
            seen = np.log([row["num_characters"] for row in run])
            loss = np.interp(np.log(text), seen, [row["Lossu"] for row in run])
            rows.append((weights, vocab * run[0]["embed_dim"], loss))
    return np.array(rows)


def fitted(rows):
    """(curve, best embedding's weights, exponent), and the residuals in nats."""
    weights, embedding, loss = rows.T
    sizes, place = np.unique(weights, return_inverse=True)
    scale = np.exp(1.456 - 0.0624 * np.log(weights / 1e6))  # nats, of the Gemstones

    def residuals(values):
        curve, best, exponent, *constants = values
        away = np.log(embedding) - best - exponent * np.log(weights / LAYERS)
        return loss - np.array(constants)[place] - curve * scale * away**2

    start = [0.01, np.log(3e6), 0.8, *(loss[place == index].min() for index in range(len(sizes)))]
    found = least_squares(residuals, start)
    return (found.x[0], np.exp(found.x[1]), found.x[2]), found.fun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", type=Path, dest="out", required=True)
    options = parser.parse_args()
    rows = points(options.data)
    (curve, best, exponent), residuals = fitted(rows)
    without = np.array([fitted(rows[rows[:, 0] != size])[0] for size in np.unique(rows[:, 0])])
    intervals = [[float(f"{value:.4g}") for value in (column.min(), column.max())] for column in without.T]
    summary = {
        "curve": round(float(curve), 5), "curve_interval": intervals[0],
        "best": float(f"{best:.4g}"), "best_interval": intervals[1],
        "exponent": round(float(exponent), 4), "exponent_interval": intervals[2],
        "rms_nats": round(float(np.sqrt(np.mean(residuals**2))), 4), "decoders": len(rows),
    }  # fmt: skip
    runs = [{"weights": weights, "embedding": embedding, "loss": round(float(loss), 4)}
            for weights, embedding, loss in rows]  # fmt: skip
    claim = "How loss depends on the vocabulary at equal text: the constants of the axis of the vocabulary"
    content = {"machine": "any: no timing", "summary": summary, "rows": runs}
    write_record(options.out, content, claim, "python bench/experiments/vocabulary.py --data exp_data.csv")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
