"""Do grouped heads of keys pay? Decoders of equal predicted time, trained alike, by their held-out loss.

    python bench/experiments/grouped_training.py -o bench/results/grouped-training.json --train TEXT --valid TEXT \\
        --cache DIR

For each budget the design of most entropy with all heads of keys, and the one with any number of them: the same board,
format, decode time behind a full cache, and vocabulary. Two more arms tell heads from width: the first design with its
heads of keys cut to one, and the second with all of them. Each is trained on the same rows in the same order, at each
learning rate with the first seed, and at the rate that did best with the others: at one rate for all, decoders of
different width are not compared fairly. One thread; a run that is stopped goes on from DIR with the same command, and
the record is written after each run of all that is there.

Set down before the first run: what decides is the mean over the seeds of `any` less `full` at 256 tokens, with its
standard error over windows of the held-out text. If `any` is worse by more than two of them in both formats, all
heads become the default of `--kv-heads`; if in float32 alone, where a board gains fewest weights, the docs say so.
After the first runs, all at 3e-3, were added: the other rates, and the arm with all heads at the wider width.

Models are small: at a width of 128 a cache of 1,024 tokens is eight times the weights in 8 bits, and grouping it leaves
time for 3.5 times the weights. With 256 tokens the gain is what larger designs have on boards: 1.1 times in float32,
1.7 in int8. So these budgets are trained first, and that of 1,024 tokens last. All are trained on rows of 256.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads
os.environ["RAYON_NUM_THREADS"] = "1"  # before tokenizers does

import numpy as np
from write_record import write_record

from merino_bench.sensors.environment import machine
from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.designer import design
from merino_edge.design.space import FULL, GROUPED, spaced
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import kv_bytes, params
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.reading import load_profile
from merino_edge.storage.atomic import write_text
from merino_edge.training.recipe import Recipe
from merino_edge.training.states import is_marked, saved_states

BOARD, VOCAB, WIDTH_STEP, BLOCKS = "raspberry-pi-zero-2w", 1024, 32, 4
ROW = 256  # tokens of a sequence in training
BUDGETS = {  # format, tokens in the cache, ms of a decode step
    "int8": ("int8", 256, 2.5),
    "fp32": ("fp32", 256, 4.0),
    "int8, 1,024 tokens": ("int8", 1024, 4.0),
}
HEADS = {"full": FULL, "any": GROUPED}
ARMS = ("int8 full", "int8 any", "int8 full, one head", "int8 any, all heads", "fp32 full", "fp32 any",
        "int8, 1,024 tokens full", "int8, 1,024 tokens any")  # fmt: skip
TURNS = (("int8 full", "int8 any"), ("int8 full, one head", "int8 any, all heads"), ("fp32 full", "fp32 any"), ARMS[6:])
SEEDS = (0, 1)
PAIRS = (
    ("int8 full", "int8 any"), ("fp32 full", "fp32 any"), ("int8, 1,024 tokens full", "int8, 1,024 tokens any"),
    ("int8 full", "int8 full, one head"), ("int8 any, all heads", "int8 any"), ("int8 full", "int8 any, all heads"),
    ("int8 full", "fp32 full"),
)  # fmt: skip
STEPS, BATCH, RATES = 600, 16, (3e-3, 1.5e-3, 7.5e-4)
TOKENIZER_BYTES, HELD_OUT_BYTES = 6_000_000, 60_000  # of the training text; of the held-out text, during a run


def body(arch):
    """Weights outside the embedding."""
    return params(arch.operators) - arch.vocab * arch.embed_width


def shape_of(budget):
    precision, context, _ = BUDGETS[budget]
    return InferenceShape(precision, context, default_prompt(context))


def arm_row(budget, arch):
    """What is predicted of a decoder within a budget."""
    model = cost_model(load_profile(BOARD), shape_of(budget))
    return {
        "budget": budget, "shape": arch.shape(), "body": body(arch), "params": params(arch.operators),
        "kv_bytes": kv_bytes(arch.operators, model.shape.context, model.shape.precision),
        "decode_ms": round(model.predict(arch.operators).decode_ms, 3), "architecture": arch.model_dump(mode="json"),
    }  # fmt: skip


def designed(budget, heads):
    precision, context, decode_ms = BUDGETS[budget]
    profile = load_profile(BOARD)
    found = design(
        profile, with_board_defaults({"decode_ms": decode_ms}, profile), context=context, precision=precision,
        space=spaced(WIDTH_STEP, BLOCKS, VOCAB, kv_heads=heads), prompt=default_prompt(context),
    )  # fmt: skip
    return found.architecture


def with_heads(arch, kv_heads):
    blocks = tuple(block.model_copy(update={"kv_heads": kv_heads}) for block in arch.blocks)
    return arch.model_copy(update={"blocks": blocks})


def arms(cache):
    """Row of each arm by its name. Kept in a file, so that a run goes on with the designs that it began with."""
    kept = cache / "arms.json"
    if not kept.exists():
        archs = {f"{budget} {name}": (budget, designed(budget, heads))
                 for budget in BUDGETS for name, heads in HEADS.items()}  # fmt: skip
        archs["int8 full, one head"] = "int8", with_heads(archs["int8 full"][1], 1)
        archs["int8 any, all heads"] = "int8", with_heads(archs["int8 any"][1], None)
        write_text(kept, json.dumps({name: arm_row(*archs[name]) for name in ARMS}, indent=1) + "\n")
    return json.loads(kept.read_text())


def prepare(asked):
    """The tokenizer, and the beginning of the held-out text for the evaluations during a run."""
    from merino_edge.text.documents import read_documents
    from merino_edge.text.tokenizer import train_tokenizer

    asked.cache.mkdir(parents=True, exist_ok=True)
    tokenizer, start = asked.cache / "tokenizer.json", asked.cache / "held-out-start.txt"
    if not tokenizer.exists():
        text = asked.cache / "tokenizer-text.txt"
        text.write_bytes(whole_lines(asked.train.read_bytes()[:TOKENIZER_BYTES]))
        write_text(tokenizer, train_tokenizer(read_documents([text]), VOCAB).to_str())
    start.write_bytes(whole_lines(asked.valid.read_bytes()[:HELD_OUT_BYTES]))
    return tokenizer, start


def whole_lines(text):
    return text[: text.rfind(b"\n") + 1]


def folder_of(cache, arm, rate, seed):
    """One for each geometry, rate and seed: two budgets may have the same design."""
    words = arm["shape"].replace(" ", "-")
    return cache / f"{words}-h{arm['architecture']['head_size']}-rate{rate:g}-seed{seed}"


def trained(arm, rate, seed, asked, tokenizer, start):
    """Train, or go on, or nothing where it is finished; then the loss of each window of the held-out text."""
    from merino_edge.training.train import train

    out = folder_of(asked.cache, arm, rate, seed)
    if (out / "windows.json").exists():
        return
    print(f"{out.name} begins or goes on", file=sys.stderr, flush=True)
    arch = Architecture.model_validate({**arm["architecture"], "context": ROW})
    recipe = Recipe(steps=STEPS, batch=BATCH, learning_rate=rate, seed=seed, bf16=True)
    resume = any(map(is_marked, saved_states(out / "trainer")))
    began, cpu = time.perf_counter(), time.process_time()
    train(arch, [asked.train], out, recipe=recipe, tokenizer_file=tokenizer, held_out=[start], resume=resume,
          threads=1, say=lambda line: print(line, file=sys.stderr, flush=True))  # fmt: skip
    spent = {
        "seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
        "resumed": resume,
    }  # fmt: skip
    windows = window_losses(out, asked.valid)
    write_text(out / "windows.json", json.dumps({**spent, "losses": [round(loss, 5) for loss in windows]}) + "\n")


def window_losses(out, valid):
    """Mean nats per token of each row of ROW tokens of the held-out text, in float32."""
    import torch

    from merino_edge.families.hugging_face import read_checkpoint
    from merino_edge.text.documents import read_documents
    from merino_edge.text.rows import PackedTokens
    from merino_edge.text.tokenizer import load_tokenizer

    model = read_checkpoint(out).model.eval()
    rows = PackedTokens(read_documents([valid]), load_tokenizer(out / "tokenizer.json"), ROW).rows.long()
    found = []
    with torch.no_grad():
        for batch in rows.split(BATCH):  # [B, T]
            logits = model(batch, use_cache=False).logits[:, :-1]  # [B, T - 1, V]
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
            found += losses.reshape(len(batch), -1).mean(dim=1).tolist()
    return found


def results(cache, arm, rate):
    """{seed: content of windows.json} of the runs that are finished."""
    files = {seed: folder_of(cache, arm, rate, seed) / "windows.json" for seed in SEEDS}
    return {seed: json.loads(path.read_text()) for seed, path in files.items() if path.exists()}


def by_rate(cache, arm):
    """{rate: mean loss of the first seed} of the finished runs."""
    runs = {rate: results(cache, arm, rate).get(SEEDS[0]) for rate in RATES}
    return {rate: round(statistics.fmean(run["losses"]), 4) for rate, run in runs.items() if run}


def best_rate(cache, arm):
    """None where no run is finished."""
    known = by_rate(cache, arm)
    return min(known, key=known.__getitem__, default=None)


def curves(cache):
    """{run: {step: loss on the beginning of the held-out text}}, of runs that are not finished too."""
    found = {}
    for out in sorted(cache.glob("*-seed*")):
        states = [state for state in saved_states(out / "trainer") if is_marked(state)]
        if states:
            log = json.loads((states[0] / "trainer_state.json").read_text())["log_history"]
            found[out.name] = {str(row["step"]): round(row["eval_loss"], 3) for row in log if "eval_loss" in row}
    return found


def with_results(cache, arm):
    """The arm's row: its losses at the best rate, by seed."""
    rate = best_rate(cache, arm)
    runs = results(cache, arm, rate) if rate else {}
    means = {seed: statistics.fmean(run["losses"]) for seed, run in runs.items()}
    return {
        **{key: value for key, value in arm.items() if key != "architecture"},
        "tokens_per_weight": round(STEPS * BATCH * ROW / arm["body"], 2),
        "first_seed_by_rate": {f"{rate:g}": loss for rate, loss in by_rate(cache, arm).items()},
        "rate": rate, "losses": {str(seed): round(mean, 4) for seed, mean in means.items()},
        "cpu_seconds": {str(seed): run["cpu_seconds"] for seed, run in runs.items()},
        "resumed": [seed for seed, run in runs.items() if run["resumed"]],
    }  # fmt: skip


def compared(names, rows, runs):
    """The second arm less the first, on the same windows and seeds; None where no seed has both."""
    first, second = (runs[name] for name in names)
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    by_seed = np.array([np.subtract(second[seed]["losses"], first[seed]["losses"]) for seed in seeds])  # [S, windows]
    windows = by_seed.mean(axis=0)
    base = statistics.fmean(rows[names[0]]["losses"][str(seed)] for seed in seeds)
    return {
        "less": names[0], "of": names[1], "times_weights": round(rows[names[1]]["body"] / rows[names[0]]["body"], 3),
        "rates_tried": [len(rows[name]["first_seed_by_rate"]) for name in names],
        "seeds": [round(float(value), 4) for value in by_seed.mean(axis=1)],
        "difference": round(float(windows.mean()), 4),
        "standard_error_over_windows": round(float(windows.std(ddof=1) / len(windows) ** 0.5), 4),
        "percent": round(100 * float(windows.mean()) / base, 2),
    }  # fmt: skip


def record(cache, known, facts):
    rows = {name: with_results(cache, arm) for name, arm in known.items()}
    runs = {name: results(cache, arm, rows[name]["rate"]) if rows[name]["rate"] else {} for name, arm in known.items()}
    pairs = [pair for pair in (compared(names, rows, runs) for names in PAIRS) if pair]
    keys = ("precision", "context", "decode_ms")
    return {
        "cpu": facts["board"], "cpus": facts["cpus"], "threads": 1, "board": BOARD, "vocab": VOCAB,
        "budgets": {name: dict(zip(keys, value, strict=True)) for name, value in BUDGETS.items()},
        "recipe": {"steps": STEPS, "batch": BATCH, "row": ROW, "tokens": STEPS * BATCH * ROW, "rates": RATES,
                   "bf16": True},
        "arms": rows, "pairs": pairs, "curves": curves(cache),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", type=Path, dest="out", required=True)
    for option in ("train", "valid", "cache"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    asked = parser.parse_args()
    tokenizer, start = prepare(asked)
    known, facts = arms(asked.cache), machine()
    for names in TURNS:
        for rate in RATES:
            for name in names:
                trained(known[name], rate, SEEDS[0], asked, tokenizer, start)
                write_record(asked.out, record(asked.cache, known, facts))
        for seed in SEEDS[1:]:
            for name in names:
                trained(known[name], best_rate(asked.cache, known[name]), seed, asked, tokenizer, start)
                write_record(asked.out, record(asked.cache, known, facts))
    for pair in record(asked.cache, known, facts)["pairs"]:
        print(*pair.values())


if __name__ == "__main__":
    main()
