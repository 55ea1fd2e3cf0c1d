"""What an export of a model of 1 to 2 B parameters takes: CPU time, memory and disk, by name and from a GGUF.

    python bench/experiments/large.py --cache DIR -o bench/results/large-models-x86-2cores.json

Weights are random. DIR gets the GGUF files and one bundle at a time (4 GB). Speed beside llama.cpp: `bars.py --model`
on these files.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from write_record import write_record

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import sample_gguf  # noqa: E402

from merino_edge.export.source import random_source  # noqa: E402
from merino_edge.families.zoo import model  # noqa: E402

NAMES = ("llama-3.2-1b", "qwen3-1.7b", "gemma-3-1b-it")
KINDS = {"int4": "Q4_0", "int8": "Q8_0"}
MB, INTERVAL_S = 1e6, 0.02


def measured(command: list[str]) -> dict[str, Any]:
    """Run an export, and return what it took and the RMS error of its logits.

    Memory is RssAnon, sampled: pages of files that are mapped can be dropped and are left out.
    """
    peak_kb = 0
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon")]
            peak_kb = max(peak_kb, *map(int, found), 0)
            time.sleep(INTERVAL_S)
        used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(used[1])
        said.seek(0)
        parity = re.findall(r"same weights (\S+) relative, over", said.read())
    if process.returncode or not parity:
        raise SystemExit(f"{command} failed")
    cpu_s = round(used[2].ru_utime + used[2].ru_stime)
    return {"rms_error": float(parity[0]), "peak_mb": round(peak_kb * 1024 / MB), "cpu_s": cpu_s}


def export_row(source: str, options: list[str], precision: str, cache: Path) -> dict[str, Any]:
    bundle = cache / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    command = [sys.executable, "-P", "-m", "merino_edge", "export", source, *options, "--precision", precision]
    found = measured([*command, "-o", str(bundle)])
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / MB
    shutil.rmtree(bundle)
    return {"bundle_mb": round(size), **found}


def gguf_file(name: str, kind: str, cache: Path) -> Path:
    """A file with random weights, written by a process whose memory is given back; one that is there is kept."""
    path = cache / f"{name}.{kind}.gguf"
    if not path.exists() and not os.fork():
        part = path.with_suffix(".part")
        sample_gguf.write_gguf(part, random_source(model(name).geometry, name).model, kind)
        part.rename(path)
        os._exit(0)
    if not path.exists() and os.wait()[1]:
        raise SystemExit(f"{path} is not written")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    record = json.loads(given.out.read_text()) if given.out.exists() else {"rows": []}
    for name, (precision, kind) in product(given.only.split(","), KINDS.items()):
        file = gguf_file(name, kind, given.cache)
        told = {"from": f"GGUF, {kind}", "file_mb": round(file.stat().st_size / MB)}
        for source, options, facts in (
            (name, ["--set", "weights=random"], {"from": "random weights"}), (str(file), [], told)
        ):  # fmt: skip
            key = {"model": name, "precision": precision, **facts}
            row = {**key, **export_row(source, options, precision, given.cache)}
            print(json.dumps(row), flush=True)
            record["rows"] = [other for other in record["rows"] if not key.items() <= other.items()] + [row]
            write_record(given.out, record, "What an export of a model of 1 to 2 B parameters takes",
                         f"python bench/experiments/large.py --cache DIR -o bench/results/{given.out.name}")


if __name__ == "__main__":
    main()
