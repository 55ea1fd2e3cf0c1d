"""What each part of a training recipe brings at this project's size: held-out loss at equal steps and at equal time.

    python bench/experiments/recipes.py run --data TEXT --folder FOLDER [--only NAME ...] [--seeds 2]
    python bench/experiments/recipes.py table --folder FOLDER

A decoder of 0.6 M weights, 20 tokens per weight, on one thread. Each variant changes the base recipe in one thing, and
has runs at three rates, of which the best counts: another optimiser has another best rate. Runs are kept in FOLDER:
what is there is not run again, and a run that was stopped goes on. `table` prints mean and range over the seeds, and
the seconds of a step against the base's, since what costs time must pay for it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from write_record import table

from merino_edge.families.designed import Architecture
from merino_edge.families.operators import params
from merino_edge.training.recipe import Recipe
from merino_edge.training.run_folder import saved_states
from merino_edge.training.train import train

ARCH = Architecture(
    blocks=[{"width": 96, "ffn_ratio": 2.0, "depth": 3}, {"width": 128, "ffn_ratio": 2.0, "depth": 2}],
    vocab=2048, head_size=32, context=256,
)  # fmt: skip
TOKENS_PER_WEIGHT = 20
BASE = Recipe(batch=16, learning_rate=3e-3)
RATES = (0.5, 1.0, 2.0)  # of the base's rate
VARIANTS = {
    "base": {},
    "muon": {"optimiser": "muon"},
    "wsd": {"schedule": "wsd"},
    "z-loss": {"z_loss": 1e-4},
    "muon+wsd": {"optimiser": "muon", "schedule": "wsd"},
}


def recipe_of(variant, rate, seed):
    steps = round(TOKENS_PER_WEIGHT * params(ARCH.operators) / (BASE.batch * ARCH.context))
    return replace(BASE, steps=steps, learning_rate=rate * BASE.learning_rate, seed=seed, **VARIANTS[variant])


def run(options):
    for seed in range(options.seeds):
        for variant in options.only or VARIANTS:
            for rate in RATES:
                out = options.folder / f"{variant}-{rate:g}-{seed}"
                resume = bool(saved_states(out / "trainer"))
                record = train(
                    ARCH, [options.data], out, recipe=recipe_of(variant, rate, seed), resume=resume, threads=1
                )
                print(f"{out.name}: {record['held_out_loss']:.4f}, {record['seconds_of_last_run']:.0f} s", flush=True)


def rows(folder):
    """(variant, best rate, losses by seed, seconds) of the runs that are finished."""
    for variant in VARIANTS:
        best = None
        for rate in RATES:
            paths = sorted(folder.glob(f"{variant}-{rate:g}-[0-9]/training.json"))
            records = [json.loads(path.read_text()) for path in paths]
            losses = [record["held_out_loss"] for record in records]
            if losses and (best is None or sum(losses) / len(losses) < sum(best[1]) / len(best[1])):
                best = rate, losses, min(record["seconds_of_last_run"] for record in records)
        if best:
            yield variant, *best


def show(options):
    recipes = list(rows(options.folder))
    base = next((each[3] for each in recipes if each[0] == "base"), None)
    print(table(
        ["recipe", "rate", "held-out loss", "range over seeds", "time of base's"],
        [
            [name, f"{rate * BASE.learning_rate:g}", f"{sum(losses) / len(losses):.4f}",
             f"{max(losses) - min(losses):.4f} ({len(losses)})", f"{seconds / base:.2f}" if base else ""]
            for name, rate, losses, seconds in recipes
        ],
    ))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table"):
        one = commands.add_parser(name)
        one.add_argument("--folder", type=Path, required=True)
    commands.choices["run"].add_argument("--data", type=Path, required=True)
    commands.choices["run"].add_argument("--only", nargs="*", choices=VARIANTS)
    commands.choices["run"].add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    {"run": run, "table": show}[options.command](options)


if __name__ == "__main__":
    main()
