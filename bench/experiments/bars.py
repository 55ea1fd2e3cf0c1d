"""The speed bars: ratios of bundles to other engines' models and to OPT-350M, all measured by `bench --peers`.

    python bench/experiments/bars.py --cache DIR -o bench/results/bars-x86-2cores.json
    python bench/experiments/bars.py --cache DIR -o bench/results/real-model-speed-x86-2cores.json --model FILE.gguf

Needs the extra `peers`, `make peers-native`, and a machine on which nothing else runs. Bundles are for it (`--board
host`). DIR keeps bundles and the records of each section (12 GB); what is there is not made or measured again. Weights
are random, but for those of a file: it is measured in each format beside llama.cpp on the same weights (a copy of the
file in F32 or Q8_0, the file as it is for int4). Where several rows of an engine match, as with llama.cpp's caches of
float16 and Q8_0, the fastest counts.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import gguf
from write_record import write_record

from merino_bench.harness.cases import BenchRequest
from merino_edge.benchmarking.run import run_benchmark
from merino_edge.calibration.board import board
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source, random_source
from merino_edge.families.designed import Architecture
from merino_edge.families.gguf.write import write_file
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.records.compare import row_ratio
from merino_edge.records.reading import read_records
from merino_edge.records.schema import DEFAULT_ENGINE, Record

OPT = "opt-350m"
VOCAB_PREFERRED = 16384  # what the search takes for a Pi 4
# Stored parameters at most OPT-350M's 331.2 M / 5.5. With parameters as the only budget the search shares layers and
# goes deep, so that a token reads far more weights than are stored: the FLOPs are the paper's middle budget.
DESIGN = ("--board", "jetson-nano:onnxruntime", "--budget", "params-m=60.2", "--budget", "flops-g=110")
TIMED, FASTER = "timed-", 5.4  # a tenth above the bar, for what predictions are off by
CONTEXT, LONG_CONTEXT, PROMPT, DEPTHS = 512, 2048, 64, (64, 448, 1984)
FORMATS = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0, table Q8_0"}  # llama.cpp's of equal bytes
LLAMA = "llama.cpp,llama.cpp-q8_0-cache"
say = partial(print, file=sys.stderr, flush=True)


class Side(NamedTuple):
    """Rows of the records: of an engine, whose name begins so, on a model's geometry in a format ("": any)."""

    model: str  # a name, or a GGUF
    precision: str
    engine: str = f"{DEFAULT_ENGINE} "  # onnxruntime-genai is another one
    kv: str | None = None

    def fastest(self, rows: list[Record], test: str) -> Record | None:
        fitting = [
            row for row in rows
            if row.test == test and not row.failure and (row.bundle, row.kv) == (stem_of(self.model), self.kv)
            and self.precision in ("", row.precision) and (row.engine or "").startswith(self.engine)
        ]  # fmt: skip
        return max(fitting, key=lambda row: row.tok_s or 0, default=None)


class Bar(NamedTuple):
    """`fast` is to be `least` times as fast as `slow`, in prefill or decode; None: reported without a bar."""

    fast: Side
    slow: Side
    decode: float | None = None
    prefill: float | None = None


class Section(NamedTuple):
    bars: list[Bar]
    peers: str | None = None
    context: int = CONTEXT
    depths: tuple[int, ...] = (PROMPT,)
    prompt: int | None = PROMPT

    def bundles(self) -> list[Side]:
        sides = (side for bar in self.bars for side in bar[:2] if side.engine == DEFAULT_ENGINE)
        return list(dict.fromkeys(sides))

    def requests(self) -> dict[str, BenchRequest]:
        """Prefill into an empty cache alone: that is what other engines are measured at."""
        decode = BenchRequest((), (64 if self.depths == (PROMPT,) else 32,), depths=self.depths)
        return {"decode": decode} | ({"prefill": BenchRequest((self.prompt,), ())} if self.prompt else {})


VARIANTS = ("64m", f"64m-v{VOCAB_PREFERRED}")  # of OPT's vocabulary, and of one of its own
BY_CACHE = (("fp32", None), ("int8", None), ("int8", "int8"), ("int4", None), ("int4", "int8"))
SECTIONS = {
    # 14 layers of 640, vocabulary 50257, against llama.cpp.
    "66m": Section([
        Bar(Side("66m", form), Side("66m", FORMATS[form], "llama.cpp"), 1.0 if form == "fp32" else 1.5, 1.3)
        for form in FORMATS
    ], LLAMA),
    "opt": Section([
        Bar(Side(OPT, "int8"), Side(OPT, "int8", "CTranslate2"), 1.5),
        Bar(Side(OPT, "fp32"), Side(OPT, "fp32", "transformers")),
        Bar(Side(OPT, "int4"), Side(OPT, "fp32", "transformers"), 5.0),  # as shipped
    ], "ctranslate2,transformers"),
    # A design of 5.5 times fewer parameters against OPT-350M.
    "64m": Section([Bar(Side(name, form), Side(OPT, form), 4.9) for form in FORMATS for name in VARIANTS]),
    # Designs whose budget is the time itself, on this machine, beside at most 60.2 M parameters.
    "timed": Section([Bar(Side(f"{TIMED}{form}", form), Side(OPT, form), 4.9) for form in FORMATS]),
    # Decode behind a long cache: of float32 and, beside quantized weights, of int8.
    "depth": Section([Bar(Side("66m", form, kv=kv), Side("66m", FORMATS[form], "llama.cpp")) for form, kv in BY_CACHE],
                     LLAMA, LONG_CONTEXT, DEPTHS, None),
}  # fmt: skip


def section_of_file(file: Path, precision: str, cache: Path, peers: str = LLAMA) -> Section:
    """A published model in one format, beside engines on the same weights."""
    kind = {"fp32": "F32", "int8": "Q8_0", "int4": None}[precision]
    copy = write_copy(file, cache / f"{file.stem}.{kind}.gguf", kind) if kind else file
    engines = dict.fromkeys("llama.cpp" if peer.startswith("llama.cpp") else peer for peer in peers.split(","))
    bars = [
        Bar(Side(str(file), precision, kv=kv), Side(str(file), "", engine), 1.3, 1.5)
        for engine in engines for form, kv in BY_CACHE if form == precision
    ]  # fmt: skip
    return Section(bars, f"{peers},{copy}", LONG_CONTEXT, DEPTHS, 512)


def stem_of(model: str) -> str:
    """The name of a model's bundle."""
    return Path(model).stem


def write_copy(source: Path, out: Path, kind: str) -> Path:
    """Write a copy of a GGUF whose matrices are of a type such as Q8_0, for llama.cpp. One that is there is kept."""
    if out.exists():
        return out
    reader = gguf.GGUFReader(source)
    part = out.with_name(f".{out.name}.part")

    def add_keys(writer: gguf.GGUFWriter) -> None:
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)

    tensors = (
        (tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type), "F32" if len(tensor.shape) < 2 else kind)
        for tensor in reader.tensors
    )
    write_file(part, reader.fields["general.architecture"].contents(), add_keys, tensors)
    part.rename(out)
    return out


def bundle_of(side: Side, context: int, cache: Path) -> str:
    """Its folder; exported in a process of its own, whose memory is given back."""
    cache_form = [f"kv-{side.kv}"] if side.kv else []
    folder = cache / "-".join([stem_of(side.model), side.precision, str(context), *cache_form])
    if not (folder / "bundle.json").exists():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(export_model, side, context, folder, cache).result()
    return str(folder)


def export_model(side: Side, context: int, folder: Path, cache: Path) -> None:
    request = ExportRequest(side.precision, board("host"), context=context, kv=side.kv or "fp32")
    export(source_of(side.model, cache), folder, request)


def source_of(name: str, cache: Path) -> Any:
    if name.endswith(".gguf"):
        return load_source(name)
    base, _, vocab = name.partition("-v")
    if base == OPT:
        return random_source(model(OPT).geometry, OPT)
    if base == "66m":
        blocks = [{"width": 640, "ffn_ratio": 1, "depth": 14}]
        architecture = {"blocks": blocks, "vocab": 50257, "head_size": 64, "context": LONG_CONTEXT}
    else:
        architecture = designed(cache / f"design-{base}.json", base)
    if vocab:
        architecture["vocab"] = int(vocab)
    return random_source(Architecture.model_validate(architecture), name)


def designed(path: Path, name: str) -> dict[str, Any]:
    """By the command that a user types; kept as design.json in the cache folder."""
    if not path.exists():
        options = for_the_time(name.removeprefix(TIMED)) if name.startswith(TIMED) else DESIGN
        command = [sys.executable, "-P", "-m", "merino_edge", "design", *options, "-o", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads(path.read_text())["architecture"])


def for_the_time(precision: str) -> tuple[str, ...]:
    """A decode time on this machine that OPT-350M's predicted one exceeds FASTER times, in one format."""
    costs = cost_model(board("host"), InferenceShape(precision, CONTEXT, PROMPT))
    opt_ms = costs.predict(model(OPT).geometry.operators).decode_ms
    return ("--board", "host", "--precision", precision, "--budget", "params-m=60.2",
            "--decode-ms", f"{opt_ms / FASTER:.4g}", "--context", str(CONTEXT), "--prompt", str(PROMPT))  # fmt: skip


def measured(name: str, section: Section, cache: Path) -> list[Record]:
    saved = {cache / f"{name}-{phase}.json": request for phase, request in section.requests().items()}
    for path, request in saved.items():
        if not path.exists():
            folders = [bundle_of(side, section.context, cache) for side in section.bundles()]
            run_benchmark(folders, request, None, "md", path, section.peers, None, say)
    return read_records(list(saved), say)


def ratios(section: Section, rows: list[Record]) -> Iterator[dict[str, Any]]:
    """A row for each bar and test that both sides were measured at."""
    for test in dict.fromkeys(row.test for row in rows):
        for bar in section.bars:
            fast, slow = bar.fast.fastest(rows, test), bar.slow.fastest(rows, test)
            if not fast or not slow:
                continue
            ratio = row_ratio(fast, slow)
            other = [fact for fact in (slow.engine, slow.bundle, slow.precision) if fact != fast.bundle]
            yield {
                "test": test, "cached": fast.depth, "prompt": fast.prompt_tokens, "model": fast.bundle,
                "precision": fast.precision, "kv": fast.kv or "float32",
                "tok_s": rounded(fast.tok_s), "other": " ".join(other),
                "other_tok_s": rounded(slow.tok_s), "ratio": rounded(ratio.value),
                "interval": [rounded(ratio.low), rounded(ratio.high)], "peak_mb": rounded(fast.peak_rss_mb),
                "other_peak_mb": rounded(slow.peak_rss_mb), "bar": bar.decode if fast.decodes else bar.prefill,
                "flags": list(ratio.flags),
            }  # fmt: skip


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", help=f"sections: {','.join(SECTIONS)}; of a --model formats; by default all")
    parser.add_argument("--model", type=Path, help="a GGUF to measure in place of these")
    parser.add_argument("--peers", default=LLAMA, help="engines beside that GGUF: openvino-genai,onnxruntime-genai")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    cache: Path = given.cache.resolve() / (given.model.stem if given.model else "")
    cache.mkdir(parents=True, exist_ok=True)
    # The record grows section by section; a section that is measured again replaces its rows.
    record = json.loads(given.out.read_text()) if given.out.exists() else {"rows": []}
    chosen = given.only.split(",") if given.only else list(FORMATS if given.model else SECTIONS)
    if given.model:
        sections = {form: section_of_file(given.model, form, cache, given.peers) for form in chosen}
    else:
        sections = {name: SECTIONS[name] for name in chosen}
    claim = "Speed ratios to other engines and to OPT-350M"
    command = (
        f"python bench/experiments/bars.py --cache DIR --only {','.join(chosen)} -o bench/results/{given.out.name}"
    )
    if given.model:
        beside = "a llama.cpp built for the machine" if given.peers == LLAMA else given.peers.replace(",", " and ")
        claim = f"{given.model.name} beside {beside}, on the same weights"
        command += f" --model {given.model.name}" + (f" --peers {given.peers}" if given.peers != LLAMA else "")
    for name, section in sections.items():
        rows = [{"section": name, **row} for row in ratios(section, measured(name, section, cache))]
        record["rows"] = [row for row in record["rows"] if row.get("section") != name] + rows
        write_record(given.out, record, claim, command)
        print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main()
