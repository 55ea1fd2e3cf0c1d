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
from write_record import kept_record, write_record

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
DESIGN = ("--board", "jetson-nano", "--backend", "onnxruntime", "--budget", "params-m=60.2", "--budget", "flops-g=110")
TIMED, FASTER = "timed-", 5.4  # a tenth above the bar, for what predictions are off by
CONTEXT, LONG_CONTEXT, PROMPT, DEPTHS = 512, 2048, 64, (64, 448, 1984)
FORMATS = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0, table Q8_0"}  # llama.cpp's of equal bytes
LLAMA = "llama.cpp,llama.cpp-q8_0-cache"
say = partial(print, file=sys.stderr, flush=True)


class Exported(NamedTuple):
    model: str
    precision: str
    kv: str | None = None
    context: int = CONTEXT


class Side(NamedTuple):
    """Rows of the records: of an engine, whose name begins so, on a bundle's geometry in a format ("": any)."""

    bundle: str
    precision: str
    engine: str = DEFAULT_ENGINE
    kv: str | None = None

    def fastest(self, rows: list[Record], test: str) -> Record | None:
        fitting = [
            row for row in rows
            if row.test == test and not row.failure and (row.bundle, row.kv) == (self.bundle, self.kv)
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
    bundles: list[Exported]
    bars: list[Bar]
    peers: str | None = None
    depths: tuple[int, ...] = (PROMPT,)
    prompt: int | None = PROMPT
    peers_file: Path | None = None

    def requests(self) -> dict[str, BenchRequest]:
        """Prefill into an empty cache alone: that is what other engines are measured at."""
        decode = BenchRequest((), (64 if self.depths == (PROMPT,) else 32,), depths=self.depths)
        return {"decode": decode} | ({"prefill": BenchRequest((self.prompt,), ())} if self.prompt else {})


def section_66m() -> Section:
    """14 layers of 640, vocabulary 50257, against llama.cpp."""
    bundles = [Exported("66m", precision) for precision in FORMATS]
    bars = [
        Bar(Side("66m", one.precision), Side("66m", FORMATS[one.precision], "llama.cpp"),
            1.0 if one.precision == "fp32" else 1.5, 1.3)
        for one in bundles
    ]  # fmt: skip
    return Section(bundles, bars, LLAMA)


def section_opt() -> Section:
    """OPT-350M against other engines."""
    bars = [
        Bar(Side(OPT, "int8"), Side(OPT, "int8", "CTranslate2"), 1.5),
        Bar(Side(OPT, "fp32"), Side(OPT, "fp32", "transformers")),
        Bar(Side(OPT, "int4"), Side(OPT, "fp32", "transformers"), 5.0),  # as shipped
    ]
    return Section([Exported(OPT, precision) for precision in FORMATS], bars, "ctranslate2,transformers")


def section_64m() -> Section:
    """A design of 5.5 times fewer parameters against OPT-350M, with OPT's vocabulary and with one of its own."""
    names = ("64m", f"64m-v{VOCAB_PREFERRED}")
    bars = [Bar(Side(name, precision), Side(OPT, precision), 4.9) for precision in FORMATS for name in names]
    return Section([Exported(model, precision) for precision in FORMATS for model in (*names, OPT)], bars)


def section_timed() -> Section:
    """Designs whose budget is the time itself, on this machine, beside at most 60.2 M parameters."""
    bars = [Bar(Side(f"{TIMED}{precision}", precision), Side(OPT, precision), 4.9) for precision in FORMATS]
    return Section([Exported(side.bundle, side.precision) for bar in bars for side in bar[:2]], bars)


def section_deep() -> Section:
    """Decode behind a long cache: of float32 and, beside quantized weights, of int8."""
    bundles = [Exported("66m", precision, kv, LONG_CONTEXT) for precision, kv in by_cache()]
    bars = [Bar(Side("66m", one.precision, kv=one.kv), Side("66m", FORMATS[one.precision], "llama.cpp"))
            for one in bundles]  # fmt: skip
    return Section(bundles, bars, LLAMA, DEPTHS, None)


def section_file(file: Path, precision: str, cache: Path) -> Section:
    """A published model in one format."""
    kind = {"fp32": "F32", "int8": "Q8_0", "int4": None}[precision]
    copy = write_copy(file, cache / f"{file.stem}.{kind}.gguf", kind) if kind else file
    bundles = [Exported(str(file), precision, kv, LONG_CONTEXT) for form, kv in by_cache() if form == precision]
    name = file.stem
    bars = [Bar(Side(name, precision, kv=one.kv), Side(name, "", "llama.cpp"), 1.3, 1.5) for one in bundles]
    return Section(bundles, bars, LLAMA, DEPTHS, 512, copy)


def by_cache() -> list[tuple[str, str | None]]:
    return [(precision, kv) for precision in FORMATS for kv in (None, "int8") if not (precision == "fp32" and kv)]


SECTIONS = {
    "66m": section_66m, "opt": section_opt, "64m": section_64m, "timed": section_timed, "depth": section_deep,
}


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


def bundle_of(exported: Exported, cache: Path) -> str:
    """Its folder; exported in a process of its own, whose memory is given back."""
    cache_form = [f"kv-{exported.kv}"] if exported.kv else []
    folder = cache / "-".join([Path(exported.model).stem, exported.precision, str(exported.context), *cache_form])
    if not (folder / "bundle.json").exists():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(export_model, exported, folder, cache).result()
    return str(folder)


def export_model(exported: Exported, folder: Path, cache: Path) -> None:
    request = ExportRequest(exported.precision, board("host"), context=exported.context, kv=exported.kv)
    export(source_of(exported, cache), folder, request)


def source_of(exported: Exported, cache: Path) -> Any:
    if exported.model.endswith(".gguf"):
        return load_source(exported.model)
    base, _, vocab = exported.model.partition("-v")
    if base == OPT:
        return random_source(model(OPT).geometry, OPT)
    if base == "66m":
        blocks = [{"width": 640, "ffn_ratio": 1, "depth": 14}]
        architecture = {"blocks": blocks, "vocab": 50257, "head_size": 64, "context": LONG_CONTEXT}
    else:
        architecture = designed(cache / f"design-{base}.json", base)
    if vocab:
        architecture["vocab"] = int(vocab)
    return random_source(Architecture.model_validate(architecture), exported.model)


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
            folders = [bundle_of(one, cache) for one in section.bundles]
            run_benchmark(folders, request, None, "md", path, section.peers, None, say,
                          section.peers_file)  # fmt: skip
    return read_records(list(saved), say)


def ratios(section: Section, rows: list[Record]) -> Iterator[dict[str, Any]]:
    """A row for each bar and test that both sides were measured at."""
    for test in dict.fromkeys(row.test for row in rows):
        for bar in section.bars:
            fast, slow = bar.fast.fastest(rows, test), bar.slow.fastest(rows, test)
            if not fast or not slow:
                continue
            ratio = row_ratio(fast, slow)
            yield {
                "test": test, "cached": fast.depth, "prompt": fast.prompt_tokens, "model": fast.bundle,
                "precision": fast.precision, "kv": fast.kv or "float32",
                "tok_s": rounded(fast.tok_s), "other": f"{slow.engine} {slow.bundle} {slow.precision}",
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
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    cache: Path = given.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    record = kept_record(given.out, {"sections": {}})
    chosen = given.only.split(",") if given.only else list(FORMATS if given.model else SECTIONS)
    if given.model:
        sections = {f"{given.model.stem}-{form}": section_file(given.model, form, cache) for form in chosen}
    else:
        sections = {name: SECTIONS[name]() for name in chosen}
    claim = "Speed ratios to other engines and to OPT-350M"
    for name, section in sections.items():
        rows = list(ratios(section, measured(name, section, cache)))
        record["sections"][name] = rows
        write_record(given.out, record, claim, f"python bench/experiments/bars.py --cache DIR --only {given.only}")
        print(name, *map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main()
