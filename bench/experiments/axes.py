"""Does an axis of the designed family lower the loss at equal predicted decode time?

    python bench/experiments/axes.py run --folder FOLDER --data FILE... --held-out FILE... [--size 0.5]
    python bench/experiments/axes.py summary --folder FOLDER -o bench/results/axes-x86-2cores.json

Rules, written before the first run:

1. Decoders: a plain one of about `--size` million active weights (layers and head), the same with more layers, and the
   plain one with each axis: every layer but one a gated convolution; 65,536 hashed bigrams beside the embedding; four
   causal taps; and pairs of these.
2. Cost: the cost model's decode latency at a full cache of 256 tokens in int8, on a Raspberry Pi 4 and a Zero 2 W. All
   decoders must keep the boards' default memory budgets; within them memory is free, as it is for the search.
3. The rival of an axis is the plain decoder of fewest layers that takes at least as long as the axis on both boards.
   So the plain side never has less time. A change of the cost model changes the rival, but no training.
4. Training: `merino_edge.training.train` as it is, from random weights, on 20 tokens for each active weight of the
   base; all decoders of a size see equally many. Each decoder has the best of three rates of a pilot over a twentieth
   of the steps, with another seed; if the best is at an edge, one more rate beyond it is tried. Nothing else is tuned.
5. Loss: of all held-out text, in bits per byte. An axis has one pair with its rival per seed, three at 0.5 and 2. Its
   effect is the mean difference of ln loss, with a 95 % interval of Student's t.
6. An axis enters the default space only if its interval lies below 0 at two sizes.

`run` may be killed at any time: the same command continues, from ten minutes before at most. Finished runs are not
repeated, so another size or more seeds add to the same folder.
"""

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path

import torch
from write_record import table, write_record

from merino_edge.families.designed import Architecture, Block, Ngrams
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_edge.storage.atomic import write_text
from merino_edge.text.documents import read_texts
from merino_edge.text.tokenizer import train_tokenizer
from merino_edge.training.checkpoint import RECORD, STATE, is_finished, saved_states
from merino_edge.training.recipe import new_recipe
from merino_edge.training.train import train

# Width, FFN ratio, layers, vocabulary.
SIZES = {"0.5": (96, 2, 4, 2048), "2": (192, 3, 4, 2048), "5": (256, 4, 5, 4096)}
FIRST = 5  # decoders, which are trained with all seeds before the others
MOST_MORE_LAYERS, CONTEXT, BATCH, ROWS = 4, 256, 8, 65_536
TOKENS_PER_WEIGHT, PILOT_SHARE, PILOT_SEED = 20, 0.05, 100
RATES, SEEDS = (0.005, 0.01, 0.02), {"0.5": 3, "2": 3, "5": 1}
BOARDS = ("raspberry-pi-4", "raspberry-pi-zero-2w")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two sides, by the number of pairs


def decoders(size):
    """{name: architecture}; plain ones are `plain-LAYERS`. In the order in which they are trained."""
    width, ratio, depth, vocab = SIZES[size]

    def decoder(layers=depth, every=1, **axes):
        block = Block(width=width, ffn_ratio=ratio, depth=layers, attention_every=every)
        head = 64 if width % 64 == 0 else 32
        return Architecture(blocks=(block,), vocab=vocab, head_size=head, context=CONTEXT, **axes)

    bigrams = {"ngrams": (Ngrams(order=2, rows=ROWS),)}
    axes = {
        "bigrams": decoder(**bigrams), "convolution": decoder(every=depth),
        "convolution+bigrams": decoder(every=depth, **bigrams), "taps": decoder(taps=True),
        "taps+bigrams": decoder(taps=True, **bigrams),
    }  # fmt: skip
    plain = {f"plain-{layers}": decoder(layers) for layers in range(depth, depth + MOST_MORE_LAYERS + 1)}
    ordered = {}
    for name, arch in axes.items():
        rival = rival_of(arch, plain)
        ordered |= {rival: plain[rival]} if rival else {}
        ordered[name] = arch
    return {f"plain-{depth}": plain[f"plain-{depth}"], **ordered}


def costs(arch):
    """{board: predicted costs}. Within the board's budget of memory, or an AssertionError."""
    predicted = {}
    for board in BOARDS:
        profile = load_profile(board)
        cost = cost_model(profile, InferenceShape("int8", CONTEXT, CONTEXT // 2)).predict(arch.operators)
        assert cost.memory_mb <= profile.budget.memory_mb, arch.shape()
        predicted[board] = {"decode_ms": cost.decode_ms, "prefill_ms": cost.prefill_ms, "memory_mb": cost.memory_mb}
    return predicted


def rival_of(arch, plain):
    """The name of the plain decoder of fewest layers that takes at least as long on both boards; None if none does."""
    least = costs(arch)
    for name, other in plain.items():
        if all(costs(other)[board]["decode_ms"] >= least[board]["decode_ms"] for board in BOARDS):
            return name
    return None


def active_weights(arch):
    return sum(op.matrix for op in arch.operators if op.kind in ("linear", "head"))


def trained(options, name, arch, rate, seed, share=1.0):
    """The held-out loss in nats per token, and the record's other facts."""
    out = options.folder / options.size / f"{name}-{rate:g}-{seed}{'-pilot' if share < 1 else ''}"
    base = next(iter(decoders(options.size).values()))
    steps = round(share * TOKENS_PER_WEIGHT * active_weights(base) / (BATCH * CONTEXT))
    if not is_finished(out):
        states = saved_states(out / STATE)
        if out.exists() and not states:
            shutil.rmtree(out)
        given = {"steps": steps, "batch": BATCH, "learning_rate": rate, "seed": seed, "evaluations": 1}
        train(
            arch, options.data, out, recipe=new_recipe(given, {}, fine_tuned=False, context=CONTEXT, bf16=False),
            held_out=options.held_out, tokenizer_file=tokenizer(options, arch.vocab), resume=bool(states),
            threads=options.threads, say=lambda _: None,
        )  # fmt: skip
        shutil.rmtree(out / STATE, ignore_errors=True)
        for weights in out.glob("*.safetensors" if share < 1 else "no"):
            weights.write_bytes(b"")  # of a pilot only the record is used
    record = json.loads((out / RECORD).read_text())
    print(f"{out.name}: {record['held_out_loss']:.4f}", flush=True)
    return record["held_out_loss"]


def tokenizer(options, vocab):
    path = options.folder / f"tokenizer-{vocab}.json"
    if not path.exists():
        documents = [document for file in options.data for document in read_texts([file])[0]]
        write_text(path, train_tokenizer(documents, vocab).to_str())
    return path


def best_rate(options, name, arch):
    losses = {rate: trained(options, name, arch, rate, PILOT_SEED, PILOT_SHARE) for rate in RATES}
    best = min(losses, key=losses.get)
    if best in (RATES[0], RATES[-1]):
        beyond = best / 2 if best == RATES[0] else best * 2
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
    """Of the runs that are finished."""
    rows = []
    for size in SIZES:
        known, losses, rates = decoders(size), {}, {}
        for path in sorted((options.folder / size).glob("*[0-9]/" + RECORD)):
            name, rate, seed = path.parent.name.rsplit("-", 2)
            record = json.loads(path.read_text())
            per_token = sum(file["bytes"] for file in record["held_out"]) / record["held_out_tokens"]
            losses.setdefault(name, {})[int(seed)] = record["held_out_loss"] / math.log(2) / per_token
            rates[name] = float(rate)
        plain = {name: arch for name, arch in known.items() if name.startswith("plain")}
        for name in losses:
            rival = None if name in plain else rival_of(known[name], plain)
            pairs = [math.log(losses[name][seed] / losses[rival][seed]) for seed in losses[name]
                     if seed in losses.get(rival, {})]  # fmt: skip
            middle = statistics.mean(pairs) if pairs else None
            half = T95[len(pairs)] * statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None
            rows.append({
                "size": size, "name": name, "active_weights": active_weights(known[name]), "rate": rates[name],
                "bits_per_byte": [round(losses[name][seed], 5) for seed in sorted(losses[name])], "rival": rival,
                "ln_loss": middle, "interval": None if half is None else [middle - half, middle + half],
                "decode_ms": {board: round(cost["decode_ms"], 4) for board, cost in costs(known[name]).items()},
            })  # fmt: skip
    print(table(list(rows[0]), [map(str, row.values()) for row in rows]) if rows else "no run is finished")
    if options.out:
        claim = "Axes of a decoder at equal predicted decode time, trained on few tokens"
        write_record(options.out, {"rows": rows}, claim, __doc__.split("\n")[2].strip())


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
