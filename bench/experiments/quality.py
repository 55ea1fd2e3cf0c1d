"""Perplexity of a published model in each format, ours beside transformers' and llama.cpp's, on the same windows.

    python bench/experiments/quality.py --model FILE.gguf --text wikitext2_test.txt --cache DIR --windows 8 \\
        -o bench/results/quality-smollm2.json

Needs the extra `peers`. The text is cut into windows of WINDOW tokens; each begins with an empty cache. They are taken
in an order that is shuffled once, so that more of them go on where fewer ended. Ours and llama.cpp's decode token by
token, transformers' float32 weights see a window at once, and so does one entrant of ours, in a quarter of the time:
each token's activations are rounded by themselves there too. DIR keeps bundles and files; a bundle that is there is not
exported again. A window that is in the record is not computed again. `--only` names entrants.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import tokenizers
import torch
from llama_cpp import open_model, write_copy
from write_record import write_record

from merino_bench.sensors.environment import machine
from merino_edge.export.export import export
from merino_edge.export.onnx.graph import MODEL_FILE, replaced_model
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.text.documents import read_documents
from merino_edge.text.perplexity import cross_entropy
from merino_edge.text.rows import PackedTokens
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle

WINDOW, SEED = 1024, 0
REFERENCE = "transformers fp32"
LAST = "ints_-1"  # the constant by which a graph takes the last position
Losses = Callable[[Sequence[int]], list[float]]  # ids [n] -> nats of each but the first [n - 1]


class Entrant(NamedTuple):
    """`form`: our precision, or llama.cpp's types of matrices and table. `blocks`: whether the file's own may be taken
    over; without, the weights are rounded anew, as those of a folder are. `whole`: see a window at once."""

    engine: str
    form: tuple[str, ...]
    blocks: bool = True
    whole: bool = False

    @property
    def name(self) -> str:
        more = ("" if self.blocks else ", rounded anew") + (", a window at once" if self.whole else "")
        return f"{self.engine} {' '.join(self.form)}{more}"


FILE = ("as it is",)
ENTRANTS = (
    Entrant("transformers", ("fp32",)), Entrant("ours", ("fp32",)), Entrant("ours", ("int8",)),
    Entrant("ours", ("int8",), whole=True),
    Entrant("ours", ("int4",)), Entrant("ours", ("int4",), blocks=False),
    Entrant("llama.cpp", FILE), Entrant("llama.cpp", ("Q8_0", "Q8_0")), Entrant("llama.cpp", ("Q4_0", "Q8_0")),
)  # fmt: skip


class Asked(NamedTuple):
    model: Path
    cache: Path
    threads: int


def opened(entrant: Entrant, asked: Asked, source: Callable[[], Source]) -> tuple[Losses, int]:
    """Its losses, and the bytes of its file: weights and graph, or the GGUF."""
    if entrant.engine == "transformers":
        model = source().model
        return lambda ids: torch_losses(model, ids), sum(4 * one.numel() for one in model.parameters())
    if entrant.engine == "llama.cpp":
        file = asked.model
        if entrant.form != FILE:
            file = write_copy(file, asked.cache / f"{file.stem}.{'-'.join(entrant.form)}.gguf", *entrant.form)
        return open_model(file, WINDOW, asked.threads), file.stat().st_size
    folder = asked.cache / f"{entrant.form[0]}{'' if entrant.blocks else '-anew'}"
    if not (folder / "bundle.json").exists():
        found = source() if entrant.blocks else source()._replace(blocks=None)
        export(found, folder, ExportRequest(precision=entrant.form[0], context=WINDOW))
    size = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    return (whole_losses if entrant.whole else bundle_losses)(folder, asked.threads), size


@torch.no_grad()
def torch_losses(model: Any, ids: Sequence[int]) -> list[float]:
    row = torch.tensor([ids])
    logits = model(input_ids=row).logits[0, :-1].float()
    return list(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none").tolist())


def bundle_losses(folder: Path, threads: int) -> Losses:
    backend = open_backend(load_bundle(str(folder), verify=False), threads)

    def losses(ids: Sequence[int]) -> list[float]:
        backend.truncate(0)
        return [cross_entropy(backend.step(one), after) for one, after in zip(ids, ids[1:], strict=False)]

    return losses


def whole_losses(folder: Path, threads: int) -> Losses:
    """Of a `fused` bundle whose graph gives the logits of all positions, over a cache that is empty."""
    bundle = load_bundle(str(folder), verify=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with replaced_model(folder, with_all_logits):
        session = onnxruntime.InferenceSession(str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    empty = {one.name: np.zeros(one.shape, one.dtype) for one in bundle.inputs if one.name.startswith("past")}

    def losses(ids: Sequence[int]) -> list[float]:
        row = np.array([ids], np.int64)
        logits = session.run(["logits"], {**empty, "input_ids": row, "attention_mask": np.ones_like(row)})[0][0]
        return [cross_entropy(one, after) for one, after in zip(logits, ids[1:], strict=False)]

    return losses


def with_all_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the nodes that keep the last position alone."""
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] == LAST:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    for output in model.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = "sequence"
    return model


def windows_of(text: Path, tokenizer: tokenizers.Tokenizer) -> tuple[list[int], np.ndarray]:
    """(numbers of the windows in the order in which they are taken, ids [windows, WINDOW])"""
    rows = PackedTokens(read_documents([text], "--text"), tokenizer, WINDOW).rows.numpy()
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    return order, rows


def rows_of(record: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Of the first `count` windows those that an entrant has. `standard_error`: of `change`, between windows."""
    known = record["losses"].get(REFERENCE, {})
    for name, losses in record["losses"].items():
        taken = [number for number in map(str, record["order"][:count]) if number in losses and number in known]
        if not taken:
            continue
        differences = [losses[number] - known[number] for number in taken]
        change = math.exp(mean(differences)) - 1
        error = stdev(differences) / math.sqrt(len(taken)) if len(taken) > 1 else None
        yield {
            "entrant": name, "bytes": record["bytes"][name], "windows": len(taken),
            "perplexity": math.exp(mean(losses[number] for number in taken)), "change": change, "standard_error": error,
        }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| entrant | 10^6 bytes | windows | perplexity | change |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        error = "" if row["standard_error"] is None else f" ± {100 * row['standard_error']:.2f}"
        lines.append(
            f"| {row['entrant']} | {row['bytes'] / 1e6:.1f} | {row['windows']} | {row['perplexity']:.3f} |"
            f" {100 * row['change']:+.2f}{error} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8, help="default %(default)s")
    parser.add_argument("--only", action="append", help="an entrant's name; may be repeated")
    parser.add_argument("-t", type=int, default=2, dest="threads", help="default %(default)s")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    asked = Asked(given.model, given.cache, given.threads)
    asked.cache.mkdir(parents=True, exist_ok=True)
    made: list[Source] = []

    def source() -> Source:
        if not made:
            made.append(load_source(str(asked.model)))
        return made[0]

    order, rows = windows_of(given.text, tokenizers.Tokenizer.from_str(str(source().tokenizer)))
    record = json.loads(given.out.read_text()) if given.out.exists() else {
        "schema": 1, "machine": machine(), "model": asked.model.name, "text": given.text.name, "window": WINDOW,
        "order": order, "rows": [], "bytes": {}, "losses": {},
    }  # fmt: skip
    for entrant in ENTRANTS:
        done = record["losses"].setdefault(entrant.name, {})
        missing = [number for number in order[: given.windows] if str(number) not in done]
        if not missing or (given.only and entrant.name not in given.only):
            continue
        losses, record["bytes"][entrant.name] = opened(entrant, asked, source)
        for number in missing:
            done[str(number)] = mean(losses(rows[number].tolist()))
            print(f"{entrant.name}, window {number}: {done[str(number)]:.5f}", file=sys.stderr, flush=True)
            record["rows"] = list(rows_of(record, given.windows))
            write_record(given.out, record)
    record["rows"] = list(rows_of(record, given.windows))
    write_record(given.out, record)
    print(table(record["rows"]))


if __name__ == "__main__":
    main()
