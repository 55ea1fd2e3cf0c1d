"""Our runtime against llama.cpp at equal geometry: 14 layers of 640, FFN ratio 1, vocabulary 50257, random weights.

    python bench/experiments/llama_cpp.py -o bench/results/llama-cpp-x86-2cores.json

Needs the extra `peers` (xllamacpp, gguf). Each measurement is a fresh process; the engines alternate, round by round.
Prompt of 64 ids, then 64 greedy decode steps, batch 1, the same number of threads. llama.cpp's times are those its own
server reports; ours are merino_bench's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

LAYERS, WIDTH, VOCAB, CONTEXT, HEAD = 14, 640, 50257, 512, 64
PROMPT, STEPS = 64, 64
# our format, llama.cpp's format of matrices, of the tied table
PAIRS = [("fp32", "F32", "F32"), ("int8", "Q8_0", "Q8_0"), ("int4", "Q4_0", "Q8_0"), ("int4", "Q4_0", "Q4_0")]


def write_gguf(path: Path, matrices: str, table: str) -> None:
    """A gpt2 model of this geometry: learned positions and LayerNorms with biases, which cost next to nothing."""
    import gguf

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(WIDTH // HEAD)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(VOCAB - 1)

    def tensor(name: str, *shape: int, kind: str = "F32") -> None:
        values = (0.02 * random.standard_normal(shape)).astype(np.float32)
        form = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)

    tensor("token_embd.weight", VOCAB, WIDTH, kind=table)
    tensor("position_embd.weight", CONTEXT, WIDTH)
    for name in ("output_norm.weight", "output_norm.bias"):
        tensor(name, WIDTH)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{layer}.{norm}.weight", WIDTH)
            tensor(f"blk.{layer}.{norm}.bias", WIDTH)
        for matrix, rows in (("attn_qkv", 3 * WIDTH), ("attn_output", WIDTH), ("ffn_up", WIDTH), ("ffn_down", WIDTH)):
            tensor(f"blk.{layer}.{matrix}.weight", rows, WIDTH, kind=matrices)
            tensor(f"blk.{layer}.{matrix}.bias", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_llama(model: str, threads: int) -> dict[str, float]:
    """In this process: one warm-up, then one measured completion."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel = 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    ids = np.random.default_rng(1).integers(0, VOCAB - 1, PROMPT).tolist()
    request = {"prompt": ids, "n_predict": STEPS + 1, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    for _ in range(2):
        answer = server.handle_completions(request)
        timings = (json.loads(answer) if isinstance(answer, str) else answer)["timings"]
    assert timings["prompt_n"] == PROMPT, timings
    assert timings["predicted_n"] == STEPS + 1, timings
    return {"prefill_ms": timings["prompt_ms"], "decode_ms": timings["predicted_per_token_ms"]}


def run_merino(bundle: str, threads: int) -> dict[str, float]:
    from merino_bench.bench import measure_apart
    from merino_bench.workload import Case, Workload

    measured = measure_apart(bundle, Case("tg", PROMPT, STEPS), Workload(repetitions=1, threads=threads))
    return {"prefill_ms": measured["prefill_ms"][0], "decode_ms": statistics.mean(measured["step_ms"][0])}


def export_bundle(folder: Path, precision: str) -> Path:
    geometry = folder / "geometry.json"
    block = {"width": WIDTH, "ffn_ratio": 1, "depth": LAYERS, "shared": False}
    geometry.write_text(json.dumps({"blocks": [block], "vocab": VOCAB, "head_size": HEAD, "context": CONTEXT}))
    code = "from merino_edge.cli import main; main()"
    bundle = folder / precision
    subprocess.run([sys.executable, "-c", code, "export", geometry, "--precision", precision, "-o", bundle],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    return bundle


def compare(rounds: int, threads: int, folder: Path) -> list[dict]:
    rows = []
    for precision, matrices, table in PAIRS:
        bundle = folder / precision
        if not bundle.exists():
            export_bundle(folder, precision)
        gguf_file = folder / f"{matrices}-{table}.gguf"
        write_gguf(gguf_file, matrices, table)
        samples: dict[str, list[dict[str, float]]] = {"merino": [], "llama.cpp": []}
        for _ in range(rounds):
            samples["merino"].append(run_merino(str(bundle), threads))
            apart = subprocess.run([sys.executable, __file__, "--llama", gguf_file, "-t", str(threads)],
                                   check=True, capture_output=True, text=True)  # fmt: skip
            samples["llama.cpp"].append(json.loads(apart.stdout.splitlines()[-1]))
        gguf_file.unlink()
        median = {
            engine: {key: statistics.median(one[key] for one in runs) for key in ("prefill_ms", "decode_ms")}
            for engine, runs in samples.items()
        }
        rows.append({
            "precision": precision, "llama_cpp_format": f"{matrices}, table {table}", "threads": threads,
            "median": median, "samples": samples,
            "decode_ratio": median["llama.cpp"]["decode_ms"] / median["merino"]["decode_ms"],
            "prefill_ratio": median["llama.cpp"]["prefill_ms"] / median["merino"]["prefill_ms"],
        })  # fmt: skip
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "samples"}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path, dest="out")
    parser.add_argument("-r", type=int, default=5, dest="rounds")
    parser.add_argument("-t", type=int, default=2, dest="threads")
    parser.add_argument("--llama", help="measure this GGUF in this process and print the figures")
    arguments = parser.parse_args()
    if arguments.llama:
        print(json.dumps(run_llama(arguments.llama, arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(arguments.rounds, arguments.threads, Path(folder))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
