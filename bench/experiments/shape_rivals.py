"""Designed decoders against uniform ones of equal predicted decode time and memory: a list, and measured steps.

    python bench/experiments/shape_rivals.py list --device raspberry-pi-4 --decode-ms 0.72 --memory-mb 67.1 -o LIST
    python bench/experiments/shape_training.py run --list LIST --folder FOLDER --rate RATE --data ... --held-out ...
    python bench/experiments/shape_rivals.py measure --list LIST --folder BUNDLES -o RECORD [-r 9]

`list` searches; all rivals have the vocabulary, context and heads of `shape_designs.py`, and three seeds. --device also
takes a calibrated profile, as `measure` needs of the machine that it runs on. `measure` requires a quiet machine.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from shape_designs import CONTEXT, HEAD, VOCAB, architecture, depths, entry, weights_of
from shape_training import lines
from write_record import write_record

from merino_edge.design.designer import design
from merino_edge.design.score import MEASURED, MERINO
from merino_edge.design.space import Space
from merino_edge.families.designed import Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_edge.storage.atomic import write_text
from merino_runtime.errors import MerinoError

PROMPT, PRECISION = CONTEXT // 2, "fp32"
SEEDS = 3
RANDOM = 20
NEAR = 2**0.5  # of the ratio of width to layers that a published family has
SPACE = Space(
    widths=tuple(range(32, 257, 32)), ffn_ratios=(0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0), depths=tuple(range(1, 9)),
    vocab=VOCAB, head_size=HEAD, narrow_head_size=None,
)  # fmt: skip


def searched(profile, limits, scoring):
    """The decoder of highest score, of one, two or four blocks."""
    designs = []
    for blocks in (1, 2, SPACE.blocks):
        try:
            designs.append(design(profile, limits, space=replace(SPACE, blocks=blocks), context=CONTEXT, prompt=PROMPT,
                                  precision=PRECISION, scoring=scoring))  # fmt: skip
        except MerinoError:  # so many blocks do not fit
            continue
    if not designs:
        raise MerinoError(f"no decoder keeps {limits}: raise --decode-ms or --memory-mb")
    return max(designs, key=lambda each: each.entropy).architecture


def every_uniform(fits):
    """Of all KV heads, or of one."""
    for width, ratio, kv_heads in itertools.product(SPACE.widths, SPACE.ffn_ratios, (None, 1)):
        for layers in range(1, 49):
            arch = architecture(
                Block(width=width, ffn_ratio=ratio, depth=depth, kv_heads=kv_heads) for depth in depths(layers)
            )
            if not fits(arch):
                break
            yield arch


def like(uniform, aspect):
    """The most weights at FFN ratio 4 and about this ratio of width to layers; else the nearest ratio."""
    def away(arch):
        return abs(math.log(arch.embed_width / sum(block.depth for block in arch.blocks) / aspect))

    known = [arch for arch in uniform if arch.blocks[0].ffn_ratio == 4 and arch.blocks[0].kv_heads is None]
    near = [arch for arch in known if away(arch) <= math.log(NEAR)]
    return max(near, key=weights_of) if near else min(known, key=away)


def of_random(fits, random):
    """The most weights of RANDOM decoders of the space that fit."""
    fitting = []
    while len(fitting) < RANDOM:
        arch = architecture(
            Block(width=int(random.choice(SPACE.widths)), ffn_ratio=float(random.choice(SPACE.ffn_ratios)), depth=depth)
            for depth in depths(int(random.integers(1, 17)))
        )
        if fits(arch):
            fitting.append(arch)
    return max(fitting, key=weights_of)


def rivals(profile, limits):
    """{name: architecture}"""
    model = cost_model(profile, InferenceShape(PRECISION, CONTEXT, PROMPT, None))

    def fits(arch):
        predicted = model.predict(arch.operators)
        return all(getattr(predicted, name) <= limit for name, limit in limits.items())

    uniform = list(every_uniform(fits))
    return {
        "measured": searched(profile, limits, MEASURED), "merino": searched(profile, limits, MERINO),
        "uniform-most-weights": max(uniform, key=weights_of), "gpt2-like": like(uniform, 64),
        "mobilellm-like": like(uniform, 18), "random": of_random(fits, np.random.default_rng(0)),
    }  # fmt: skip


def listed(profile, limits):
    model = cost_model(profile, InferenceShape(PRECISION, CONTEXT, PROMPT, None))
    designs = []
    for name, arch in rivals(profile, limits).items():
        predicted = model.predict(arch.operators)
        designs.append({**entry(name, "rivals", arch), "decode_ms": round(predicted.decode_ms, 4),
                        "memory_mb": round(predicted.memory_mb, 3)})  # fmt: skip
    runs = [(each["name"], seed) for seed in range(SEEDS) for each in designs]
    return {"seed": 0, "device": profile.id, "limits": limits, "designs": designs, "runs": runs}


def measured(content, folder, repetitions):
    """Rows of `merino-edge bench`: a decode step behind a nearly full cache, in fresh interleaved processes."""
    bundles = []
    for each in content["designs"]:
        plan, bundle = folder / f"{each['name']}.json", folder / each["name"]
        write_text(plan, json.dumps(each["architecture"]))
        if not bundle.exists():
            call("export", plan, "--precision", PRECISION, "-o", bundle)
        bundles.append(bundle)
    steps, cached = 64, CONTEXT - 64 - 1
    out = call("bench", *bundles, "-p", "0", "-n", steps, "-d", cached, "-r", repetitions, "-t", 1, "-o", "json")
    by_name = {each["name"]: each for each in content["designs"]}
    return [{"name": Path(row["bundle"]).name, "decode_ms": row["ms_p50"],
             "predicted_ms": by_name[Path(row["bundle"]).name]["decode_ms"], "peak_rss_mb": row["peak_rss_mb"]}
            for row in json.loads(out)]  # fmt: skip


def call(*words):
    command = [sys.executable, "-m", "merino_edge", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list")
    command.add_argument("--device", default="raspberry-pi-4")
    command.add_argument("--decode-ms", type=float, required=True)
    command.add_argument("--memory-mb", type=float, required=True)
    command.add_argument("-o", type=Path, dest="out", required=True)
    command = commands.add_parser("measure")
    command.add_argument("--list", type=Path, required=True)
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("-r", type=int, default=9, dest="repetitions")
    command.add_argument("-o", type=Path, dest="out", required=True)
    options = parser.parse_args()
    if options.command == "list":
        limits = {"decode_ms": options.decode_ms, "memory_mb": options.memory_mb}
        write_text(options.out, lines(listed(load_profile(options.device), limits)))
        return
    content = json.loads(options.list.read_text())
    write_record(options.out, {"device": content["device"], "limits": content["limits"],
                               "rows": measured(content, options.folder, options.repetitions)})  # fmt: skip


if __name__ == "__main__":
    main()
