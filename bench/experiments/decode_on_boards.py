"""Whole decode steps on boards without dotprod, against llama.cpp: instructions counted, bytes, and predicted time.

    python bench/experiments/decode_on_boards.py --cache DIR -o bench/results/decode-on-boards.json

No board is used. Instructions of a step are counted under user-mode emulation (`tests/targets/counted_instructions.py`;
MERINO_QEMU_PLUGINS names a qemu-aarch64 that was built with plugins), of llama.cpp in a build for the same cores
(`llama_arm64.sh`). Weights are random and of equal shapes: SmolLM2-135M, and a design of 35 M. llama.cpp's cache is
filled by the build of `make peers-native`. DIR keeps bundles, files and counts.

Time lies between the longer of reading and computing and their sum. Reading: bytes of weights and cached keys and
values over the profile's bandwidth. Computing: instructions of a kernel times its cycles per instruction, over four
cores, and all other instructions at OTHER_CYCLES: those of this project on one core, those of llama.cpp over four.
Waiting of threads for each other is in neither.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from write_record import table, write_record

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "targets"))
os.environ.setdefault("MERINO_USERS_CACHE", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))

from counted_instructions import RUNTIME, step_by_function, steps_by_file, why_not  # noqa: E402 - a module of the tests
from emulated_board import OLDER  # noqa: E402

from merino_edge.benchmarking.llama_cpp_native import library, loaded_model, native_build, version  # noqa: E402
from merino_edge.export.random_bundle import write_random_bundle  # noqa: E402
from merino_edge.families.designed import Architecture  # noqa: E402
from merino_edge.families.gguf.write import add_key, add_tokens, write_file  # noqa: E402
from merino_edge.families.zoo import model as published  # noqa: E402
from merino_edge.profiles.reading import load_profile  # noqa: E402
from merino_runtime.bundle import Bundle, load_bundle  # noqa: E402

CONTEXT, DEPTHS, CORES = 1152, (64, 1024), 4
BOARDS = {"raspberry-pi-zero-2w": "cortex-a53", "jetson-nano": "cortex-a57", "raspberry-pi-4": "cortex-a72"}
DESIGN = {
    "blocks": [{"width": 768, "ffn_ratio": 2.0, "depth": 8, "shared": False, "kv_heads": 1}],
    "vocab": 8192, "head_size": 64, "context": CONTEXT,
}  # fmt: skip
MODELS = {
    "smollm2-135m": published("smollm2-135m").geometry.model_copy(update={"context": CONTEXT}),
    "design-35m": Architecture.model_validate(DESIGN),
}  # fmt: skip
PORTABLE_ON = "jetson-nano"  # whose Python 3.6 has onnxruntime 1.10
CACHE_TYPES = {"f16": 1, "q8_0": 8}  # of llama.cpp, by ggml's numbers
CACHE_BYTES = {"fp32": 4.0, "int8": 1.0, "f16": 2.0, "q8_0": 34 / 32}  # of a key's or a value's channel
# Functions of llama.cpp by the part of a step that they are; all others: "other".
PARTS = {
    "q4_0": ("ggml_vec_dot_q4_0",), "q8_0": ("ggml_vec_dot_q8_0",),
    "attention": ("ggml_vec_dot_f16", "flash_attn", "vec_mad", "vec_scale", "dequantize_row_q8_0", "expf"),
}  # fmt: skip
# Instructions for a weight or a multiply-add, counted, that a profile's cycles are for (docs/decisions/kernels.md).
COUNTED = {"matmul4": 0.34, "matmul8": 0.41, "matmulinteger": 0.39, "group_attention": 0.45, "attention": 1.14}
# llama.cpp's: instructions, cycles of Cortex-A57 and A72, of A53, by the same llvm-mca models. Its attention is taken
# to have the cycles per instruction of q8_0.
LLAMA_COUNTED = {"q4_0": (0.84, 0.36, 0.97), "q8_0": (0.75, 0.32, 0.88), "attention": (0.75, 0.32, 0.88)}
OTHER_CYCLES = {"cortex-a53": 1.5, "cortex-a57": 1.0, "cortex-a72": 1.0}  # for an instruction: assumed

Row = dict[str, Any]


def our_rows(name: str, dialect: str, kv: str, cpu: str, cache: Path) -> Iterator[Row]:
    """A step's instructions in thousands, by part. Those of attention follow from two depths, in dialect `portable`,
    which attends to the whole cache, from two contexts."""
    portable = dialect == "portable"
    bundle = random_bundle(name, dialect, kv, CONTEXT, cache)
    if portable:
        shorter = random_bundle(name, dialect, kv, CONTEXT // 2, cache)
        counted = [*steps(shorter, DEPTHS[:1], cpu, portable), *steps(bundle, DEPTHS[:1], cpu, portable)]
        grown, filled = "onnxruntime", (CONTEXT // 2, CONTEXT)
    else:
        counted = steps(bundle, DEPTHS, cpu, portable)
        grown, filled = "own", (DEPTHS[0], DEPTHS[1])
    each = (counted[1][grown] - counted[0][grown]) / (filled[1] - filled[0])
    head = bundle.vocab * MODELS[name].embed_width * COUNTED[head_kernel(dialect)] / 1e3
    for index, depth in enumerate(DEPTHS):
        parts = counted[1 if portable else index]
        attention = each * (CONTEXT if portable else depth + 1)
        yield {
            "engine": f"onnxruntime {'1.10.0' if portable else '1.32.0'}", "model": name, "dialect": dialect, "kv": kv,
            "depth": depth, "cpu": cpu, "weight_bytes": bundle.decode_weight_bytes,
            "cache_bytes": cache_bytes(name, CONTEXT if portable else depth + 1, kv),
            "matmul4": parts["own"] - (0 if portable else attention + head), "attention": attention, "head": head,
            "other": parts["onnxruntime"] - (attention + head if portable else 0) + parts["other"],
        }  # fmt: skip


def head_kernel(dialect: str) -> str:
    return "matmulinteger" if dialect == "portable" else "matmul8"


def random_bundle(name: str, dialect: str, kv: str, context: int, cache: Path) -> Bundle:
    folder = cache / f"{name}-{dialect}-{kv}-{context}"
    if not (folder / "bundle.json").exists():
        arch = MODELS[name].model_copy(update={"context": context})
        write_random_bundle(
            arch, "int4", folder, name, core="no-dotprod", kv=None if kv == "fp32" else kv, by_groups=True,
            dialect=dialect,
        )  # fmt: skip
    return load_bundle(str(folder), verify=False)


def steps(bundle: Bundle, depths: tuple[int, ...], cpu: str, portable: bool) -> list[dict[str, float]]:
    """Thousands of instructions of this project's library, of onnxruntime, and of all else."""
    places: dict[str, Any] = {}
    if portable:
        root = OLDER["1.10.0"]
        python = root / "usr" / "bin" / "python3"
        places = {"root": root, "python": python, "paths": (root / "opt" / "onnxruntime-1.10.0", RUNTIME)}
    parts = []
    for counts in steps_by_file(cpu, Path(bundle.folder), depths, **places):
        own = sum(count for file, count in counts.items() if file.startswith("kernels-"))
        backend = sum(count for file, count in counts.items() if file.startswith("onnxruntime_"))
        rest = sum(counts.values()) - own - backend
        parts.append({"own": own / 1e3, "onnxruntime": backend / 1e3, "other": rest / 1e3})
    return parts


def cache_bytes(name: str, filled: int, kv: str) -> float:
    return sum(2 * heads * size * filled * CACHE_BYTES[kv] for heads, size in MODELS[name].kv_layers)


def llama_row(name: str, kv: str, depth: int, cpu: str, cache: Path) -> Row:
    file, state = cache / f"{name}.gguf", cache / f"{name}-{kv}-{depth}.state"
    if not file.exists():
        write_gguf(name, file)
    if not state.exists():
        fill_cache(file, state, CACHE_TYPES[kv], depth)
    counts = step_by_function(cpu, cache / "llama" / "llama_step", [file, state, str(CACHE_TYPES[kv])])
    largest = sorted(counts.items(), key=lambda each: -each[1])[:12]
    print(name, kv, depth, cpu, [(function[:60], count) for function, count in largest], file=sys.stderr)
    parts = {
        part: sum(count for function, count in counts.items() if any(word in function for word in words)) / 1e3
        for part, words in PARTS.items()
    }
    return {
        "engine": "llama.cpp", "model": name, "kv": kv, "depth": depth, "cpu": cpu,
        "weight_bytes": sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors),
        "cache_bytes": cache_bytes(name, depth + 1, kv), **parts,
        "other": sum(counts.values()) / 1e3 - sum(parts.values()),
    }  # fmt: skip


def write_gguf(name: str, path: Path) -> None:
    """Random weights of these shapes: matrices in Q4_0, the embedding, which is the head too, in Q8_0. The design as
    llama.cpp's architecture `arcee`: RMSNorm, rotary positions, grouped heads, an FFN of two matrices."""
    arch = MODELS[name]
    designed = isinstance(arch, Architecture)
    block = arch.blocks[0] if designed else arch
    width, head_size = block.width, arch.head_size
    layers = block.depth if designed else arch.layers
    ffn = round(block.width * block.ffn_ratio) if designed else arch.ffn_width
    kv_heads = block.kv_heads if designed else arch.kv_heads
    known = {
        "context_length": CONTEXT, "embedding_length": width, "block_count": layers, "feed_forward_length": ffn,
        "attention.head_count": width // head_size, "attention.head_count_kv": kv_heads,
        "attention.key_length": head_size, "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": head_size, "rope.freq_base": 1e4,
        "vocab_size": arch.vocab,
    }  # fmt: skip
    kind = "arcee" if designed else "llama"
    random = np.random.default_rng(0)

    def add_keys(writer: gguf.GGUFWriter) -> None:
        for key, value in known.items():
            add_key(writer, f"{kind}.{key}", value)
        add_tokens(writer, arch.vocab)

    def matrix(name: str, rows: int, columns: int, form: str = "Q4_0") -> tuple[str, np.ndarray, str]:
        return f"{name}.weight", random.normal(0, 0.02, (rows, columns)).astype(np.float32), form

    def norm(name: str) -> tuple[str, np.ndarray, str]:
        return f"{name}.weight", np.ones(width, np.float32), "F32"

    tensors = [matrix("token_embd", arch.vocab, width, "Q8_0"), norm("output_norm")]
    for layer in range(layers):
        of, kv_width = f"blk.{layer}", kv_heads * head_size
        tensors += [norm(f"{of}.attn_norm"), norm(f"{of}.ffn_norm"), matrix(f"{of}.attn_q", width, width)]
        tensors += [matrix(f"{of}.attn_{each}", kv_width, width) for each in "kv"]
        tensors += [matrix(f"{of}.attn_output", width, width)]
        tensors += [matrix(f"{of}.ffn_{each}", ffn, width) for each in (("up",) if designed else ("up", "gate"))]
        tensors += [matrix(f"{of}.ffn_down", width, ffn)]
    write_file(path, kind, add_keys, tensors)


def fill_cache(file: Path, state: Path, cache_type: int, depth: int) -> None:
    folder = native_build()
    if folder is None:
        raise SystemExit("no llama.cpp built for this machine: make peers-native")
    llama = library(folder)
    model, _quiet = loaded_model(llama, str(file))
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, CONTEXT, 512
    options.type_k = options.type_v = cache_type
    options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
    context = llama.llama_init_from_model(model, options)
    tokens = (llama.llama_token * depth)(*(2 + 7 * place % 1000 for place in range(depth)))
    if llama.llama_decode(context, llama.llama_batch_get_one(tokens, depth)):
        raise SystemExit("llama.cpp does not decode")
    if not llama.llama_state_save_file(context, str(state).encode(), tokens, depth):
        raise SystemExit(f"llama.cpp does not write {state}")


def predicted(row: Row, board: str) -> Row:
    """ms of reading and of computing on a board."""
    profile, own = load_profile(board), row["engine"] != "llama.cpp"
    at = 2 if BOARDS[board] == "cortex-a53" else 1
    if own:
        attention = "attention" if row["dialect"] == "portable" else "group_attention"
        kernels = {"matmul4": "matmul4", "attention": attention, "head": head_kernel(row["dialect"])}
        cycles = {
            part: getattr(profile.cpu.cycles_per_weight, kernel) / COUNTED[kernel] for part, kernel in kernels.items()
        }
    else:
        cycles = {part: figures[at] / figures[0] for part, figures in LLAMA_COUNTED.items()}
    shared = sum(row[part] * each for part, each in cycles.items())  # thousands of cycles
    other = row["other"] * OTHER_CYCLES[BOARDS[board]]
    gb = (row["weight_bytes"] + row["cache_bytes"]) / 1e9
    read = 1e3 * gb / profile.performance.onnxruntime.read_gb_s.value
    compute = (shared / CORES + other / (1 if own else CORES)) * 1e-3 / profile.cpu.clock_ghz.value
    return {"board": board, "read_ms": read, "compute_ms": compute, "max_ms": max(read, compute),
            "sum_ms": read + compute}  # fmt: skip


def all_rows(cache: Path) -> Iterator[Row]:
    for name in MODELS:
        for cpu in dict.fromkeys(BOARDS.values()):
            for kv in ("fp32", "int8"):
                yield from our_rows(name, "fused", kv, cpu, cache)
        yield from our_rows(name, "portable", "fp32", BOARDS[PORTABLE_ON], cache)
        for kv in CACHE_TYPES:
            for depth in DEPTHS:  # the build has one path for all of these cores
                yield llama_row(name, kv, depth, "cortex-a53", cache)


def boards_of(row: Row) -> list[str]:
    if row["engine"] == "llama.cpp":
        return list(BOARDS)
    if row["dialect"] == "portable":
        return [PORTABLE_ON]
    return [board for board, cpu in BOARDS.items() if cpu == row["cpu"]]


def cells(row: Row) -> list[str]:
    counts = [f"{row.get(part, 0) / 1e3:.1f}" for part in ("matmul4", "head", "q4_0", "q8_0", "attention", "other")]
    mb = [f"{row[key] / 1e6:.1f}" for key in ("weight_bytes", "cache_bytes")]
    times = [f"{each['board']} {each['max_ms']:.1f}-{each['sum_ms']:.1f}" for each in row["predicted"]]
    engine = f"{row['engine']} {row.get('dialect', '')}"
    return [row["model"], engine, row["kv"], str(row["depth"]), row["cpu"], *counts, *mb, ", ".join(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    if why_not():
        sys.exit(why_not())
    given.cache.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    subprocess.run([here / "llama_arm64.sh", sys.executable, given.cache / "llama"], check=True)
    rows = [{**row, "predicted": [predicted(row, board) for board in boards_of(row)]} for row in all_rows(given.cache)]
    folder = native_build()
    llama = version(folder) if folder else "?"
    write_record(given.out, {
        "schema": 1, "about": (__doc__ or "").split("\n\n")[0], "llama_cpp_python": llama,
        "rows": [rounded(row) for row in rows],
    })  # fmt: skip
    titles = ("model", "engine", "kv", "behind", "cpu", "matmul4", "head", "q4_0", "q8_0", "attention", "other",
              "weights MB", "cache MB", "ms")  # fmt: skip
    print(table(titles, map(cells, rows)))


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 2) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
