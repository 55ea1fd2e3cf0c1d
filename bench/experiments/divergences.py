"""How far each format of a GGUF file, and llama.cpp on the same file, are from the file's weights in float32.

    python bench/experiments/divergences.py FILE.gguf... --cache DIR -o bench/results/divergences.json

The reference answers short questions greedily in float32; each format reads these answers (`merino-edge export` states
the same figures). Bundles are for this machine's kind of core. llama.cpp is the build of `make peers-native` with its
default cache of float16. DIR keeps the bundles. What is in the record is not measured again.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_cpp_peer import LlamaCpp
from write_record import kept_record, table, write_record

from merino_edge.bundles.files import bundle_bytes
from merino_edge.export.divergence import QUESTIONS, Divergence, answers_of, divergence, divergence_of
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.prediction.formats import core_here
from merino_runtime.bundle import load_bundle

CONTEXT, THREADS = 512, 2
RIVAL = "llama.cpp"


def measured(path: Path, formats: list[str], cache: Path, count: int) -> Iterator[dict[str, Any]]:
    source = load_source(str(path))
    answers = answers_of(source, CONTEXT, count)
    for each in formats:
        if each == RIVAL:
            rival = LlamaCpp(path, CONTEXT, THREADS)
            yield row_of(path, each, divergence_of(rival, answers), path.stat().st_size / 1e6)  # type: ignore[arg-type]
            continue
        out = cache / f"{path.stem}-{each}"
        if not (out / "bundle.json").exists():
            export(source, out, ExportRequest(precision=each, context=CONTEXT, core=core_here()))
        yield row_of(path, each, divergence(load_bundle(str(out)), answers), bundle_bytes(out) / 1e6)


def row_of(path: Path, name: str, measured: Divergence, mb: float) -> dict[str, Any]:
    row = {"file": path.name, "format": name, "mb": round(mb, 1), **measured._asdict()}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--formats", default="int8,int4")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    record = kept_record(given.out, {"schema": 1, "about": __doc__.split("\n\n")[0], "rows": []})
    for path in given.files:
        known = {row["format"] for row in record["rows"] if row["file"] == path.name}
        left = [each for each in (*given.formats.split(","), RIVAL) if each not in known]
        for row in measured(path, left, given.cache, given.questions) if left else ():
            record["rows"].append(row)
            write_record(given.out, record)
    fields = ("file", "format", "mb", "kl_mean", "kl_p99", "top1", "kept", "answers")
    print(table(fields, [[str(row[field]) for field in fields] for row in record["rows"]]))


if __name__ == "__main__":
    main()
