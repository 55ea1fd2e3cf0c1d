"""Which reading of gamma orders decoders as training does? Small ones, trained alike, by their held-out loss.

    python bench/experiments/gamma.py -o bench/results/gamma.json --train TEXT --valid TEXT --work FOLDER

Two blocks and about half a million weights outside the embedding each, in shapes from few wide layers to many narrow
ones. Every one is trained from the same seed on the same tokens, one thread each, as many side by side as there are
cores (half an hour on two). Resumable: what is trained is not trained again. The record has the rank correlation of
each reading's score with minus the loss, with bootstrap intervals.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from scipy.stats import spearmanr
from write_record import write_record

from merino_edge.design.score import SCORES, block_score
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.operators import params

VOCAB, CONTEXT, HEAD = 1024, 128, 32
FIRST_WIDTHS, STEP, MOST_DEPTH = (64, 96, 128, 160), 32, 12
COUNT, LEAST_WEIGHTS, MOST_WEIGHTS = 20, 470_000, 530_000
TRAIN_BYTES, VALID_BYTES = 6_000_000, 300_000
READINGS = {"off": "merino-off", "literal": "merino-literal", "inverse": "merino"}  # of gamma -> the score's name
BOOTSTRAPS = 10_000


def weights(arch):
    """Outside the embedding."""
    return params(arch.operators) - VOCAB * arch.blocks[0].width


def decoders():
    random = np.random.default_rng(11)
    found = []
    while len(found) < COUNT:
        first = FIRST_WIDTHS[len(found) % len(FIRST_WIDTHS)]
        widths = first, first + STEP * int(random.integers(0, first // STEP + 1))
        blocks = tuple(
            Block(width=width, ffn_ratio=float(random.choice([1, 1.5, 2, 3, 4])),
                  depth=int(random.integers(1, MOST_DEPTH + 1)))
            for width in widths
        )  # fmt: skip
        arch = Architecture(blocks=blocks, vocab=VOCAB, head_size=HEAD, context=CONTEXT)
        if LEAST_WEIGHTS <= weights(arch) <= MOST_WEIGHTS and arch not in found:
            found.append(arch)
    return found


def trained(place, arch, work):
    """The record of a training run, made now or before."""
    import torch

    from merino_edge.training.train import Recipe, train

    out = work / f"decoder-{place}"
    record = out / "training.json"
    if not record.exists():
        torch.set_num_threads(1)
        recipe = Recipe(steps=400, batch=16, learning_rate=3e-3, bf16=True)
        train(arch, [work / "train.txt"], out, recipe=recipe, tokenizer_file=work / "tokenizer.json",
              held_out=[work / "valid.txt"], resume=(out / "trainer").exists())  # fmt: skip
    return json.loads(record.read_text())


def prepare(asked):
    from merino_edge.text.documents import read_documents
    from merino_edge.text.tokenizer import train_tokenizer

    asked.work.mkdir(parents=True, exist_ok=True)
    for source, name, size in ((asked.train, "train.txt", TRAIN_BYTES), (asked.valid, "valid.txt", VALID_BYTES)):
        text = source.read_bytes()[:size]
        (asked.work / name).write_bytes(text[: text.rfind(b"\n") + 1])
    tokenizer = asked.work / "tokenizer.json"
    if not tokenizer.exists():
        tokenizer.write_text(train_tokenizer(read_documents([asked.work / "train.txt"]), VOCAB).to_str())


def score(arch, gamma):
    """As a search adds it up."""
    scoring = SCORES[READINGS[gamma]]
    return sum(block_score(block.width, block.ffn_width, block.depth, block.shared, scoring)
               for block in arch.blocks)  # fmt: skip


def correlation(rows):
    """Of each reading: the rank correlation and its 95 % interval; of `inverse` less each other, the interval too."""
    losses = np.array([row["loss"] for row in rows])
    scores = {gamma: np.array([row["scores"][gamma] for row in rows]) for gamma in READINGS}
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(rows), len(rows)) for _ in range(BOOTSTRAPS)]
    drawn = {gamma: [spearmanr(values[draw], -losses[draw]).statistic for draw in draws]
             for gamma, values in scores.items()}  # fmt: skip

    def interval(values):
        return [round(float(value), 3) for value in np.nanpercentile(values, (2.5, 97.5))]

    found = {gamma: {"rank_correlation": round(float(spearmanr(values, -losses).statistic), 3),
                     "interval": interval(drawn[gamma])}
             for gamma, values in scores.items()}  # fmt: skip
    for other in ("off", "literal"):
        found[f"inverse_less_{other}"] = {"interval": interval(np.subtract(drawn["inverse"], drawn[other]))}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="out", required=True)
    for name in ("train", "valid", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    prepare(asked)
    chosen = decoders()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        records = list(pool.map(trained, range(COUNT), chosen, [asked.work] * COUNT))
    rows = [
        {"shape": arch.shape(), "weights": weights(arch), "layers": sum(block.depth for block in arch.blocks),
         "loss": round(record["held_out_loss"], 4),
         "scores": {gamma: round(score(arch, gamma), 1) for gamma in READINGS}}
        for arch, record in zip(chosen, records, strict=True)
    ]  # fmt: skip
    summary = correlation(rows)
    write_record(asked.out, {"summary": summary, "rows": rows})
    for row in rows:
        print(*row.values())
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
