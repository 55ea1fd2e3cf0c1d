"""Does an axis of the designed family lower the loss at equal predicted decode time?

    python bench/experiments/axes.py run --folder FOLDER --data FILE... --held-out FILE... [--size 0.5]
    python bench/experiments/axes.py summary --folder FOLDER [-o RECORD]

Rules, written before the first run:

1. Decoders: a plain one of about `--size` million active weights (layers and head), the same with more layers, and the
   plain one with each axis (all layers but one gated convolutions, 65,536 hashed bigrams, four causal taps) and pairs.
2. Cost: predicted decode latency at a full cache of 256 tokens in int8, on a Raspberry Pi 4 and a Zero 2 W. Memory is
   free within the boards' default budgets, as it is for the search.
3. The rival of an axis is a plain decoder that takes as long. Its ln loss is linear in ln ms between the two plain
   decoders whose times enclose the axis's, seed by seed; the lower one of the two boards counts. The base is the rival
   of an axis that is faster. A change of the cost model changes no training.
4. Training: `merino_edge.training.train` as it is, from random weights, on 20 tokens for each active weight of the
   base; all decoders of a size see equally many. Each decoder has the best of three rates of a pilot over a twentieth
   of the steps, with another seed; if the best is at an edge, one more rate beyond it is tried. Nothing else is tuned.
5. Loss: of all held-out text, in bits per byte. An axis has one difference of ln loss to its rival per seed, three
   seeds at 0.5 and 2. Its effect is their mean, with a 95 % interval of Student's t.
6. An axis enters the default space only if its interval lies below 0 at two sizes.

`run` may be killed at any time: the same command continues, from ten minutes before at most.
"""

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import torch
from write_record import table, write_record

from merino_edge.families.checkpoint import RECORD
from merino_edge.families.designed import Architecture, Block, Ngrams
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_edge.storage.atomic import write_text
from merino_edge.text.documents import read_texts
from merino_edge.text.tokenizer import train_tokenizer
from merino_edge.training.checkpoint import STATE, is_finished, saved_states
from merino_edge.training.recipe import new_recipe
from merino_edge.training.train import train

# Width, FFN ratio, layers, vocabulary.
SIZES = {"0.5": (96, 2, 4, 2048), "2": (192, 3, 4, 2048), "5": (256, 4, 5, 4096)}
FIRST, MOST_MORE_LAYERS = 6, 4  # decoders that are trained with all seeds before the others; of a plain one
CONTEXT, BATCH, ROWS = 256, 8, 65_536
TOKENS_PER_WEIGHT, PILOT_SHARE, PILOT_SEED = 20, 0.05, 100
RATES, SEEDS = (0.01, 0.02, 0.04), {"0.5": 3, "2": 3, "5": 1}
BOARDS = ("raspberry-pi-4", "raspberry-pi-zero-2w")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two sides, by the number of pairs


def decoders(size):
    """{name: architecture} in the order of training; plain ones are `plain-LAYERS`."""
    width, ratio, depth, vocab = SIZES[size]

    def decoder(layers=depth, every=1, **axes):
        block = Block(width=width, ffn_ratio=ratio, depth=layers, attention_every=every)
        return Architecture(blocks=(block,), vocab=vocab, head_size=32, context=CONTEXT, **axes)

    bigrams = {"ngrams": (Ngrams(order=2, rows=ROWS),)}
    axes = {
        "bigrams": decoder(**bigrams), "convolution": decoder(every=depth),
        "convolution+bigrams": decoder(every=depth, **bigrams), "taps": decoder(taps=True),
        "taps+bigrams": decoder(taps=True, **bigrams),
    }  # fmt: skip
    plain = {f"plain-{layers}": decoder(layers) for layers in range(depth, depth + MOST_MORE_LAYERS + 1)}
    ordered = {}
    for name, arch in axes.items():
        ordered |= {rung: plain[rung] for rung in rungs_of(arch, plain)} | {name: arch}
    return {f"plain-{depth}": plain[f"plain-{depth}"], **ordered}


def decode_ms(arch):
    """{board: predicted ms}. Within the board's budget of memory, or an AssertionError."""
    predicted = {}
    for board in BOARDS:
        profile = load_profile(board)
        cost = cost_model(profile, InferenceShape("int8", CONTEXT, CONTEXT // 2)).predict(arch.operators)
        assert cost.memory_mb <= profile.budget.memory_mb, arch.shape()
        predicted[board] = cost.decode_ms
    return predicted


def rungs_of(arch, plain):
    """The names of the plain decoders whose times enclose the axis's on either board, of those that there are."""
    names, rungs = list(plain), set()
    for board, ms in decode_ms(arch).items():
        faster = sum(decode_ms(other)[board] < ms for other in plain.values())
        rungs |= {faster - 1, faster} & set(range(len(names)))
    return [names[place] for place in sorted(rungs)]


def rival_loss(arch, plain, losses):
    """The ln loss of plain decoders at the axis's time by their `losses`, {name: loss}; None if all are faster."""
    rivals = []
    for board, own in decode_ms(arch).items():
        ms = [decode_ms(plain[name])[board] for name in losses]
        if not ms or own > max(ms):
            return None
        rivals.append(np.interp(math.log(own), np.log(ms), np.log(list(losses.values()))))
    return float(min(rivals))


def active_weights(arch):
    return sum(op.matrix for op in arch.operators if op.kind in ("linear", "head"))


def trained(options, name, arch, rate, seed, share=1.0):
    """The held-out loss in nats per token."""
    out = options.folder / options.size / f"{name}-{rate:g}-{seed}{'-pilot' if share < 1 else ''}"
    base = next(iter(decoders(options.size).values()))
    steps = round(share * TOKENS_PER_WEIGHT * active_weights(base) / (BATCH * CONTEXT))
    tokenizer = options.folder / f"tokenizer-{arch.vocab}.json"
    if not tokenizer.exists():
        write_text(tokenizer, train_tokenizer(read_texts(options.data)[0], arch.vocab).to_str())
    if not is_finished(out):
        states = saved_states(out / STATE)
        if out.exists() and not states:
            shutil.rmtree(out)
        given = {"steps": steps, "batch": BATCH, "learning_rate": rate, "seed": seed, "evaluations": 1}
        train(
            arch, options.data, out, recipe=new_recipe(given, {}, fine_tuned=False, context=CONTEXT, bf16=False),
            held_out=options.held_out, tokenizer_file=tokenizer, resume=bool(states),
            threads=options.threads, say=lambda _: None,
        )  # fmt: skip
        shutil.rmtree(out / STATE, ignore_errors=True)
    record = json.loads((out / RECORD).read_text())
    print(f"{out.name}: {record['held_out_loss']:.4f}", flush=True)
    return record["held_out_loss"]


def best_rate(options, name, arch):
    losses = {rate: trained(options, name, arch, rate, PILOT_SEED, PILOT_SHARE) for rate in RATES}
    beyond = {RATES[0]: RATES[0] / 2, RATES[-1]: 2 * RATES[-1]}.get(min(losses, key=losses.get))
    if beyond:
        losses[beyond] = trained(options, name, arch, beyond, PILOT_SEED, PILOT_SHARE)
    return min(losses, key=losses.get)


def run(options):
    known = decoders(options.size)
    for names in (list(known)[:FIRST], list(known)[FIRST:]):
        rates = {name: best_rate(options, name, known[name]) for name in names}
        for seed in range(SEEDS[options.size]):
            for name in names:
                trained(options, name, known[name], rates[name], seed)


def summary(options):
    rows = []
    for size in SIZES:
        known, losses, rates = decoders(size), {}, {}
        for path in sorted((options.folder / size).glob("*[0-9]/" + RECORD)):
            name, rate, seed = path.parent.name.rsplit("-", 2)
            record = json.loads(path.read_text())
            bits = record["held_out_loss"] * record["held_out_tokens"] / math.log(2)
            losses.setdefault(name, {})[int(seed)] = bits / sum(file["bytes"] for file in record["held_out"])
            rates[name] = float(rate)
        plain = {name: arch for name, arch in known.items() if name.startswith("plain")}
        for name in losses:
            pairs = []
            for seed, loss in losses[name].items():
                rungs = {other: losses[other][seed] for other in plain if seed in losses.get(other, {})}
                rival = None if name in plain else rival_loss(known[name], plain, rungs)
                pairs += [] if rival is None else [math.log(loss) - rival]
            middle = statistics.mean(pairs) if pairs else None
            half = T95[len(pairs)] * statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None
            rows.append({
                "size": size, "name": name, "active_weights": active_weights(known[name]), "rate": rates[name],
                "bits_per_byte": [round(losses[name][seed], 5) for seed in sorted(losses[name])],
                "ln_loss": middle, "interval": None if half is None else [middle - half, middle + half],
                "decode_ms": {board: round(ms, 4) for board, ms in decode_ms(known[name]).items()},
            })  # fmt: skip
    print(table(list(rows[0]), [map(str, row.values()) for row in rows]) if rows else "no run is finished")
    if options.out:
        write_record(options.out, {"rows": rows}, "Axes at equal predicted decode time", "bench/experiments/axes.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "summary"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--held-out", type=Path, nargs="+", default=[])
    parser.add_argument("--size", choices=SIZES, default="0.5")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", type=Path, dest="out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (run if options.what == "run" else summary)(options)


if __name__ == "__main__":
    main()
