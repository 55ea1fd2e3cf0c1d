"""What helps a small decoder to learn? Optimizers, schedules, changes of the decoder, one at a time, at equal tokens.

    python bench/experiments/recipes.py run --data TITLE=FILE... --held-out TITLE=FILE...
    python bench/experiments/recipes.py analyze -o bench/results/recipes-x86-2cores.json

The decoder: four layers of 64 channels, 0.2 M weights beside the embedding, 20 tokens for each. Each variant changes
one thing of AdamW at 4e-3 or of Muon at 2e-2, both with a cosine. Texts, tokenizer and folder are those of
`shape_training.py`. `run` may be killed at any time and goes on from the last whole run; several processes share the
runs. Results: docs/decisions/training.md.
"""

import argparse
import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from shape_analysis import losses, over_pairs
from shape_designs import CONTEXT, HEAD, VOCAB
from shape_training import LIST, Recipe, batch_of, bits_per_byte, finished, initial, prepare, run_all
from write_record import commits_of, write_record

from merino_edge.families.designed import Architecture, Block
from merino_edge.storage.atomic import cache_folder
from merino_edge.training.optimizer import optimizer_for

TOKENS = 3_932_160  # 1,920 steps of 8 rows of 256: 20 for each weight
LAYERS = 4
BATCH, WARMUP_SHARE, WEIGHT_DECAY = 8, 0.05, 0.1
DECAY_SHARE = 0.2  # of the steps, in which `wsd` lowers the rate to 0
SEEDS = 2
RUNS = "recipes.jsonl"


class Variant(NamedTuple):
    optimizer: str = "adamw"
    rate: float = 4e-3
    schedule: str = "cosine"
    z_loss: float = 0.0  # weight of the squared logarithm of the softmax's denominator (PaLM, arXiv 2204.02311)
    qk_norm: bool = False  # queries and keys of each head in RMS 1, without weights (arXiv 2010.04245)
    squared_relu: bool = False  # in place of GELU (Primer, arXiv 2109.08668)
    std: float = 0.0  # of the layers' matrices at the start; 0: 1/sqrt(inputs)
    embedding_std: float = Recipe().embedding_std
    by_width: bool = False  # rates by the inputs of each matrix
    width: int = 64
    share: float = 1.0  # of the tokens


BASES = "AdamW, 4e-3", "Muon, 2e-2"
ADAMW, MUON = Variant(), Variant("muon", rate=2e-2)
VARIANTS = {
    "AdamW, 2e-3": ADAMW._replace(rate=2e-3),
    "AdamW, 4e-3": ADAMW,
    "AdamW, 8e-3": ADAMW._replace(rate=8e-3),
    "Muon, 1e-2": MUON._replace(rate=1e-2),
    "Muon, 2e-2": MUON,
    "Muon, 4e-2": MUON._replace(rate=4e-2),
    "Muon, warm-down in the last fifth": MUON._replace(schedule="wsd"),
    "Muon, z-loss 1e-4": MUON._replace(z_loss=1e-4),
    "Muon, QK norm": MUON._replace(qk_norm=True),
    "Muon, squared ReLU": MUON._replace(squared_relu=True),
    "AdamW, matrices begin at 0.02": ADAMW._replace(std=0.02),
    "AdamW, 2e-3, matrices begin at 0.02": ADAMW._replace(rate=2e-3, std=0.02, embedding_std=0.02),
    "Muon, 1e-2, warm-down in the last fifth": MUON._replace(rate=1e-2, schedule="wsd"),
    "Muon, matrices begin at 0.02": MUON._replace(std=0.02),
    "Muon, 3e-3, matrices begin at 0.02": MUON._replace(rate=3e-3, std=0.02),
    "Muon, embedding begins at 0.02": MUON._replace(embedding_std=0.02),
    "Muon, 5e-3": MUON._replace(rate=5e-3),
    "Muon, 5e-3, warm-down in the last fifth": MUON._replace(rate=5e-3, schedule="wsd"),
} | {
    f"Muon, {rate:g}{', by width' if by_width else ''}, {width} channels":
    MUON._replace(rate=rate, embedding_std=0.02, by_width=by_width, width=width, share=1 / 4)
    for by_width in (True, False) for width in (32, 256) for rate in (2.5e-3, 1e-2, 4e-2)
}


def share_of_rate(variant, share):
    """Of the rate, behind `share` of the steps."""
    warm = min(1.0, share / WARMUP_SHARE)
    if variant.schedule == "wsd":
        return warm * min(1.0, (1 - share) / DECAY_SHARE)
    return warm * (1 + math.cos(math.pi * max(0.0, (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)))) / 2


@contextmanager
def changed(model, variant):
    """The decoder's forward pass with the variant's changes, which no product code has."""
    decoder, normal, relu = sys.modules[type(model).__module__], torch.nn.functional.rms_norm, torch.nn.functional.relu
    rotate, gelu = decoder.rotate, torch.nn.functional.gelu
    if variant.qk_norm:
        decoder.rotate = lambda x, rotary: rotate(normal(x, x.shape[-1:]), rotary)
    if variant.squared_relu:
        torch.nn.functional.gelu = lambda x, **_: relu(x).square()
    try:
        yield
    finally:
        decoder.rotate, torch.nn.functional.gelu = rotate, gelu


def loss_of(model, ids, z_loss):
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    return loss + z_loss * torch.logsumexp(logits, -1).square().mean() if z_loss else loss


def train(variant, seed, material):
    """{"1": {title: bits per byte}}, and seconds of CPU of all steps."""
    arch = Architecture(
        blocks=(Block(width=variant.width, ffn_ratio=4.0, depth=LAYERS),), vocab=VOCAB, context=CONTEXT, head_size=HEAD
    )
    model = initial(arch, seed, Recipe(embedding_std=variant.embedding_std))
    if variant.std:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 2 and name != "embed_tokens.weight":
                    weight.mul_(variant.std * weight.shape[1] ** 0.5)
    with changed(model, variant):
        seconds = learn(model, variant, seed, material.rows)
        return {"1": bits_per_byte(model, material.held_out)}, seconds


def learn(model, variant, seed, rows):
    """Seconds of CPU of all steps."""
    recipe = SimpleNamespace(optimizer=variant.optimizer, learning_rate=variant.rate, weight_decay=WEIGHT_DECAY)
    optimizer = optimizer_for(model, recipe, variant.by_width)
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps, began = round(variant.share * TOKENS) // (BATCH * CONTEXT), time.process_time()
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share_of_rate(variant, (step + 1) / steps)
        loss_of(model, batch_of(rows, step, BATCH, seed), variant.z_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - began


def analyzed(rows):
    loss = losses(rows)

    def less(name, base):
        return over_pairs(loss[name][seed] - loss[base][seed] for seed in sorted(loss[name].keys() & loss[base].keys()))

    return {
        name: {
            "variant": VARIANTS[name]._asdict(),
            "less_than": {base: less(name, base) for base in BASES if base in loss},
            "cpu_seconds": [row["cpu_seconds"] for row in rows if row["name"] == name],
        }
        for name in VARIANTS if name in loss
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, analyze = commands.add_parser("run"), commands.add_parser("analyze")
    for command in (run, analyze):
        command.add_argument("--folder", type=Path, default=cache_folder() / "experiments" / "shape-training")
    run.add_argument("--data", nargs="+", required=True, metavar="TITLE=FILE")
    run.add_argument("--held-out", nargs="+", required=True, metavar="TITLE=FILE")
    analyze.add_argument("-o", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "run":
        listed = json.loads(LIST.read_text())
        material = prepare(options.data, options.held_out, options.folder, listed, Recipe())
        runs = [
            (name, seed, variant.rate)
            for seed in range(SEEDS) for name, variant in VARIANTS.items() if seed == 0 or variant.share == 1
        ]  # fmt: skip
        run_all(runs, lambda name, seed, *_: train(VARIANTS[name], seed, material), options.folder, RUNS)
    else:
        rows = finished(options.folder / RUNS)
        record = {"commits": commits_of(rows), "tokens": TOKENS, "variants": analyzed(rows), "runs": rows}
        write_record(options.o, record)


if __name__ == "__main__":
    main()
