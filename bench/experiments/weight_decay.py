"""How much weight decay suits a run of how many steps? Held-out loss of one small decoder by `--weight-decay`.

    python bench/experiments/weight_decay.py --data tinystories_train.txt --held-out tinystories_valid.txt --folder DIR
        -o bench/results/weight-decay-x86-2cores.json

Every eighth story, and a decoder of 0.17 M weights, which reads them 14 times: in 1,140 steps of 8 rows, or in four
times as many of 2. And all stories, 1.7 times: in 1,140 steps of 8. Checkpoints are kept in DIR: a run that is there
is not repeated. Two runs at once, one thread each.
"""

import itertools
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distillation import parsed, trained
from write_record import write_record

from merino_edge.storage.atomic import write_text

DECODER = {"blocks": [{"width": 64, "ffn_ratio": 3.0, "depth": 3, "kv_heads": 1}],
           "vocab": 1024, "head_size": 32, "context": 512}  # fmt: skip
ROWS, DECAYS, SEEDS = 9120, (0.1, 0.5), (0, 1)
CASES = ((8, "eighth"), (2, "eighth"), (8, "all"))  # rows of a step, stories
END = "<|endoftext|>"


def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(__doc__, arguments)
    eighth = given.folder / "eighth.txt"
    write_text(eighth, END.join(given.data.read_text(encoding="utf-8").split(END)[::8]))
    files = {"eighth": eighth, "all": given.data}

    def row(run: tuple[tuple[int, str], float, int]) -> dict[str, Any]:
        (batch, stories), decay, seed = run
        options = "--batch", str(batch), "--weight-decay", f"{decay:g}", "--compile"
        name = f"{stories}-rows-{batch}-decay-{decay:g}-{seed}"
        of = Namespace(**{**vars(given), "data": files[stories]})
        result = trained(of, DECODER, name, ROWS // batch, seed, *options)
        facts = {key: result[key] for key in ("seed", "steps", "loss")}
        return {"stories": stories, "batch": batch, "weight_decay": decay, **facts}

    with ThreadPoolExecutor(2) as two:
        rows = list(two.map(row, itertools.product(CASES, DECAYS, SEEDS)))
    about = __doc__.split("\n\n")[0] if __doc__ else ""
    write_record(given.o, {"schema": 1, "about": about, "decoder": DECODER, "rows": rows})


if __name__ == "__main__":
    main()
