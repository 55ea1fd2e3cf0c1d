"""How much weight decay suits data that is read many times? Held-out loss of one small decoder by `--weight-decay`.

    python bench/experiments/weight_decay.py --data tinystories_train.txt --held-out tinystories_valid.txt --folder DIR
        -o bench/results/weight-decay-x86-2cores.json

Every eighth story, and a decoder of an eighth of the embedded model's weights, which reads them 16 times: so tokens and
passes for each weight are about the embedded model's. Checkpoints are kept in DIR: a run that is there is not repeated.
Two runs at once, one thread each.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distillation import BATCH, trained
from write_record import write_record

from merino_edge.storage.atomic import write_text

DECODER = {"blocks": [{"width": 64, "ffn_ratio": 3.0, "depth": 3, "kv_heads": 1}],
           "vocab": 1024, "head_size": 32, "context": 512}  # fmt: skip
STEPS, DECAYS, SEEDS = 1140, (0.1, 0.3, 0.5, 1.0), (0, 1)
END = "<|endoftext|>"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("-o", type=Path, required=True)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    eighth = given.folder / "eighth.txt"
    write_text(eighth, END.join(given.data.read_text(encoding="utf-8").split(END)[::8]))
    given.data = eighth

    def row(run: tuple[int, float]) -> dict[str, Any]:
        seed, decay = run
        options = "--weight-decay", f"{decay:g}", "--compile"
        return {**trained(given, DECODER, f"decay-{decay:g}-{seed}", STEPS, seed, *options), "weight_decay": decay}

    with ThreadPoolExecutor(2) as two:
        rows = list(two.map(row, [(seed, decay) for seed in SEEDS for decay in DECAYS]))
    for each in rows:
        del each["cpu_s"]  # of all processes that ended meanwhile
    about = __doc__.split("\n\n")[0] if __doc__ else ""
    write_record(given.o, {"schema": 1, "about": about, "decoder": DECODER, "batch": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
