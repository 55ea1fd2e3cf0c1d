"""Perplexity of a model in each weight and cache format, beside transformers' and llama.cpp's, on the same windows.

    python bench/experiments/quality.py --model FILE.gguf --text wikitext2_test.txt --cache DIR --windows 8 \\
        -o bench/results/quality-smollm2.json
    python bench/experiments/quality.py --model embedded --text tinystories_valid.txt --calibrate FILE --cache DIR \\
        --window 512 --only "transformers fp32" --only "ours fp32, int8 cache" --only "ours fp32, int4 cache" -o FILE

llama.cpp needs the extra `peers` and a GGUF. The text is cut into windows; each begins with an empty cache. Their order
is shuffled once, so that a run with more windows continues one with fewer. Bundles and llama.cpp decode token by token.
transformers' float32 weights see a window at once, and so does one variant of a bundle, in a quarter of the time: there
too each token's activations are rounded separately. DIR keeps bundles and files; a bundle that is there is not exported
again. A window that is in the record is not computed again. `change`: from float32 weights by transformers.
"""

import argparse
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
from llama_cpp_peer import open_model, write_copy
from write_record import kept_record, table, write_record

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

SEED = 0
REFERENCE = "transformers fp32"
LAST = "ints_-1"  # the constant by which a graph takes the last position
Losses = Callable[[Sequence[int]], list[float]]  # ids [n] -> nats of each but the first [n - 1]


class Variant(NamedTuple):
    """`form`: the precision of a bundle, or llama.cpp's types of matrices and embedding. `blocks`: whether the file's
    own may be taken over; without, the weights are rounded again, as those of a folder are. `whole`: see a window at
    once. `kv`: format of a bundle's cache."""

    engine: str
    form: tuple[str, ...]
    blocks: bool = True
    whole: bool = False
    kv: str | None = None

    @property
    def name(self) -> str:
        more = ("" if self.blocks else ", rounded anew") + (", a window at once" if self.whole else "")
        more += f", {self.kv} cache" if self.kv else ""
        return f"{self.engine} {' '.join(self.form)}{more}"


FILE = ("as it is",)
VARIANTS = (
    Variant("transformers", ("fp32",)), Variant("ours", ("fp32",)), Variant("ours", ("int8",)),
    Variant("ours", ("int8",), whole=True),
    Variant("ours", ("int4",)), Variant("ours", ("int4",), blocks=False),
    *(Variant("ours", (form,), kv=kv) for form in ("fp32", "int8") for kv in ("int8", "int4")),
    Variant("llama.cpp", FILE), Variant("llama.cpp", ("Q8_0", "Q8_0")), Variant("llama.cpp", ("Q4_0", "Q8_0")),
)  # fmt: skip


def opened(variant: Variant, given: argparse.Namespace, source: Source) -> tuple[Losses, int]:
    """Its losses, and the bytes of its file: weights and graph, or the GGUF."""
    if variant.engine == "transformers":
        return lambda ids: torch_losses(source.model, ids), sum(4 * one.numel() for one in source.model.parameters())
    if variant.engine == "llama.cpp":
        file = Path(given.model)
        if variant.form != FILE:
            file = write_copy(file, given.cache / f"{file.stem}.{'-'.join(variant.form)}.gguf", *variant.form)
        return open_model(file, given.window, given.threads), file.stat().st_size
    calibration = given.calibrate if variant.kv else None
    parts = [*variant.form, *([] if variant.blocks else ["anew"]), *([f"kv-{variant.kv}"] if variant.kv else [])]
    folder = given.cache / "-".join([*parts, *(["calibrated"] if calibration else [])])
    if not (folder / "bundle.json").exists():
        weights = source if variant.blocks else source._replace(blocks=None)
        form = ExportRequest(precision=variant.form[0], context=given.window, kv=variant.kv, calibration=calibration)
        export(weights, folder, form)
    size = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    return (whole_losses if variant.whole else bundle_losses)(folder, given.threads), size


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


def windows_of(text: Path, tokenizer: tokenizers.Tokenizer, window: int) -> tuple[list[int], np.ndarray]:
    """(numbers of the windows in the order in which they are taken, ids [windows, window])"""
    rows = PackedTokens(read_documents([text], "--text"), tokenizer, window).rows.numpy()
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    return order, rows


def rows_of(record: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Of the first `count` windows those that a variant has. `standard_error`: of `change`, between windows."""
    known = record["losses"].get(REFERENCE, {})
    for name, losses in record["losses"].items():
        taken = [number for number in map(str, record["order"][:count]) if number in losses and number in known]
        if not taken:
            continue
        differences = [losses[number] - known[number] for number in taken]
        change = math.exp(mean(differences)) - 1
        error = stdev(differences) / math.sqrt(len(taken)) if len(taken) > 1 else None
        yield {
            "name": name, "bytes": record["bytes"][name], "windows": len(taken),
            "perplexity": math.exp(mean(losses[number] for number in taken)), "change": change, "standard_error": error,
        }  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    error = "" if row["standard_error"] is None else f" ± {100 * row['standard_error']:.2f}"
    change = f"{100 * row['change']:+.2f}{error} %"
    return [row["name"], f"{row['bytes'] / 1e6:.1f}", f"{row['windows']}", f"{row['perplexity']:.3f}", change]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as `merino-edge export` takes it")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, help="text for the scales of quantised caches")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--window", type=int, default=1024, help="tokens; default %(default)s")
    parser.add_argument("--windows", type=int, default=8, help="default %(default)s")
    parser.add_argument("--only", action="append", help="a variant's name; may be repeated")
    parser.add_argument("-t", type=int, default=2, dest="threads", help="default %(default)s")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    source = load_source(given.model)
    made = tokenizers.Tokenizer
    tokenizer = source.tokenizer
    read = made.from_file(str(tokenizer)) if isinstance(tokenizer, Path) else made.from_str(str(tokenizer))
    order, rows = windows_of(given.text, read, given.window)
    record = kept_record(given.out, {
        "schema": 1, "machine": machine(), "model": Path(given.model).name, "text": given.text.name,
        "window": given.window, "order": order, "rows": [], "bytes": {}, "losses": {},
    })  # fmt: skip
    for variant in VARIANTS:
        done = record["losses"].setdefault(variant.name, {})
        missing = [number for number in order[: given.windows] if str(number) not in done]
        if not missing or (given.only and variant.name not in given.only):
            continue
        losses, record["bytes"][variant.name] = opened(variant, given, source)
        for number in missing:
            done[str(number)] = mean(losses(rows[number].tolist()))
            print(f"{variant.name}, window {number}: {done[str(number)]:.5f}", file=sys.stderr, flush=True)
            record["rows"] = list(rows_of(record, given.windows))
            write_record(given.out, record)
    record["rows"] = list(rows_of(record, given.windows))
    write_record(given.out, record)
    print(table(["name", "10^6 bytes", "windows", "perplexity", "change"], map(cells, record["rows"])))


if __name__ == "__main__":
    main()
