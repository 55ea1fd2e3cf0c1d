"""What huge pages are worth: fresh processes of one bundle in turn, with them and without (Linux).

    python bench/experiments/huge_pages.py -o bench/results/huge-pages-x86-2cores.json [BUNDLE...]

Without bundles: a decoder of 18 M parameters and the 66 M one of decoder_66m.py, in three formats, random weights. Each
pair is two processes one after the other, in random order; without, the kernel is told to give the process none
(PR_SET_THP_DISABLE of prctl(2), which children inherit).
"""

import argparse
import ctypes
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from decoder_66m import GEOMETRY

from merino_bench.harness.cases import Case
from merino_bench.harness.processes import measure_apart
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.benchmarking.redesign import steps_ms
from merino_edge.export.random_bundle import write_random_bundle
from merino_edge.families.designed import Architecture

PR_SET_THP_DISABLE = 41
CASE = Case("tg", 64, 48, 64, None)
REPETITIONS, TIMEOUT_S = 3, 600
SMALLER = {"blocks": [{"width": 384, "ffn_ratio": 2, "depth": 12, "shared": False}], "vocab": 8192, "head_size": 64,
           "context": 512}  # fmt: skip


def bundles(folder):
    for name, geometry in (("18M", SMALLER), ("66M", GEOMETRY)):
        for form in ("fp32", "int8", "int4"):
            path = folder / f"{name}-{form}"
            write_random_bundle(Architecture.model_validate(geometry), form, path, path.name)
            yield path


def measured(path, huge):
    if ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, int(not huge), 0, 0, 0):
        raise SystemExit("this kernel cannot switch huge pages off for one process")
    found = measure_apart(str(path), CASE, REPETITIONS, 0, False, TIMEOUT_S)
    return {"decode_ms": lower_decile_ms(steps_ms(found)), "prefill_ms": min(found["prefill_ms"]),
            "load_ms": found["load_ms"], "peak_rss_mb": found["peak_rss_mb"]}  # fmt: skip


def row_of(name, pairs):
    """Medians; of decode also the ratio within pairs, with its quartiles, and the spread between processes."""
    row = {"bundle": name, "pairs": len(pairs)}
    for key in pairs[0][True]:
        row[key] = {("huge" if huge else "small"): round(statistics.median(pair[huge][key] for pair in pairs), 4)
                    for huge in (False, True)}  # fmt: skip
    ratios = [pair[False]["decode_ms"] / pair[True]["decode_ms"] for pair in pairs]
    row["decode_speedup"] = [round(float(value), 3) for value in np.percentile(ratios, (25, 50, 75))]
    for huge in (False, True):
        logs = np.log([pair[huge]["decode_ms"] for pair in pairs])
        low, high = np.percentile(logs, (25, 75))
        row[f"spread_{'huge' if huge else 'small'}_percent"] = round(100 * float(high - low), 1)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    parser.add_argument("--pairs", type=int, default=12)
    asked = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        paths = asked.bundles or list(bundles(Path(scratch)))
        pairs = {path: [] for path in paths}
        for _ in range(asked.pairs):
            for path in paths:
                order = random.permutation([False, True])
                pairs[path].append({bool(huge): measured(path, bool(huge)) for huge in order})
        rows = [row_of(path.name, found) for path, found in pairs.items()]
    asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
