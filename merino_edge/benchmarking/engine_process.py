"""Measure one engine at one case in this process, which should be a fresh one, by the protocol of the harness' worker.

`python -m merino_edge.benchmarking.engine_process REQUEST`: a JSON object in, one JSON object out with the worker's
keys. Rounds in WARM_UP_S warm up and are not timed. `ids` (the prompt) and `chosen` (the generated ids) are for tests.
"""

import json
import re
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from merino_bench.harness.worker import DIGITS, WARM_UP_S, prompt_ids, summarized
from merino_bench.sensors import environment
from merino_bench.sensors.environment import cpu_moment
from merino_edge.benchmarking.engines import GENERIC_BUILD, WITH_Q8_0_CACHE, native_build
from merino_runtime.io import board

# By a feature's name in bundles and profiles, its name in llama.cpp's description of itself.
FEATURES = {
    "f16c": "F16C", "fma": "FMA", "avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI", "amx_int8": "AMX_INT8", "dotprod": "DOTPROD",
    "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
# (ids, steps) -> the times in s: of the start, of the first token, of each step's; and the chosen ids.
Round = Callable[[Sequence[int], int], tuple[list[float], list[int]]]
Opened = tuple[str, Round, list[str]]  # engine with version, a function that runs one round, notes
WARM_UP_STEPS = 8  # of a warm-up round


def measure_peer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure an engine and return the worker's keys. request: engine, runner, path, precision, threads, prompt, steps,
    repetitions, vocab."""
    before = environment.state()
    start = time.perf_counter()
    engine, run_round, notes = OPENERS[request["runner"]](request)
    load_ms = 1e3 * (time.perf_counter() - start)
    ids = prompt_ids(request["vocab"], request["prompt"])  # those of a bundle of this vocabulary
    began = cpu_moment()
    while cpu_moment().clock_s < began.clock_s + WARM_UP_S:
        run_round(ids, min(request["steps"], WARM_UP_STEPS))
    rounds = [run_round(ids, request["steps"]) for _ in range(request["repetitions"])]
    timed = began, [times_s for times_s, _ in rounds], cpu_moment()
    return summarized(before, timed, request["threads"]) | {
        "engine": engine, "threads": request["threads"], "prefill_threads": request["threads"],
        "load_ms": round(load_ms, DIGITS), "verify_ms": None, "notes": notes, "ids": ids, "chosen": rounds[-1][1],
        "prefill_phases_s": [], "decode_phases_s": [],  # no energy: the parent measures bundles' only
    }


def open_transformers(request: dict[str, Any]) -> Opened:
    """Open transformers on the CPU: forward over its own cache, greedy, each step timed to the choice of its token."""
    import torch
    import transformers

    import merino_edge.families.hugging_face  # noqa: F401 - registers what transformers does not have

    torch.set_num_threads(request["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(request["path"], dtype=torch.float32).eval()

    @torch.inference_mode()
    def run_round(ids: Sequence[int], steps: int) -> tuple[list[float], list[int]]:
        cache: Any = None
        chosen: list[int] = []
        times_s = [time.perf_counter()]
        tokens, begin = torch.tensor([ids]), 0  # [1, sequence]
        for _ in range(steps + 1):
            positions = torch.arange(begin, begin + tokens.shape[1])[None]  # [1, sequence]
            out = model(input_ids=tokens, position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1)
            cache, begin = out.cache, begin + tokens.shape[1]
            chosen.append(int(out.logits[0, -1].argmax()))
            times_s.append(time.perf_counter())
            tokens = torch.tensor([[chosen[-1]]])
        return times_s, chosen

    versions = f"transformers {transformers.__version__}, torch {torch.__version__} CPU"
    return versions, run_round, [f"attention: {model.config._attn_implementation}; logits of the last position"]


def open_ctranslate2(request: dict[str, Any]) -> Opened:
    """Open CTranslate2's Generator. It decodes in its own loop and calls back at each token, when the clock is read."""
    import ctranslate2

    generator = ctranslate2.Generator(
        request["path"], device="cpu", compute_type=request["precision"], inter_threads=1,
        intra_threads=request["threads"],
    )  # fmt: skip

    def run_round(ids: Sequence[int], steps: int) -> tuple[list[float], list[int]]:
        times_s, chosen = [time.perf_counter()], []

        def stop_here(step: Any) -> bool:
            times_s.append(time.perf_counter())
            chosen.append(step.token_id)
            return False

        generator.generate_batch(
            [[f"t{token}" for token in ids]], max_length=steps + 1, min_length=steps + 1, beam_size=1, sampling_topk=1,
            include_prompt_in_result=False, callback=stop_here,
        )  # fmt: skip
        if len(chosen) != steps + 1:
            raise RuntimeError(f"CTranslate2 gave {len(chosen)} tokens, {steps + 1} were requested")
        return times_s, chosen

    note = f"computes in {generator.compute_type}; end of text is masked until the last step"
    return f"CTranslate2 {ctranslate2.__version__} CPU", run_round, [note]


def open_llama_cpp(request: dict[str, Any]) -> Opened:
    """Open llama.cpp: the build for this machine if there is one, else the wheel xllamacpp."""
    folder, q8_0_cache = native_build(), request["engine"] == WITH_Q8_0_CACHE
    cache = "KV cache in Q8_0" if q8_0_cache else "KV cache in float16, its default"
    if folder is None:
        return open_wheel(request, [cache, "times by its own clock"])
    # The functions of llama.h. The package itself is not imported: it needs more than these.
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(folder)]
    sys.modules["llama_cpp"] = package
    llama = import_module("llama_cpp.llama_cpp")
    version = re.search(r'__version__ = "([^"]+)"', (folder / "__init__.py").read_text())
    engine = f"{request['engine']} (llama-cpp-python {version[1] if version else '?'}, built for this machine) CPU"
    build = llama.llama_print_system_info().decode()
    return engine, open_native(llama, request, q8_0_cache), [cache, *features_of(build)]


def features_of(build: str) -> list[str]:
    """Return notes on a build of llama.cpp, by its description of itself, with the features of this machine that it
    does not use."""
    used, isa = re.findall(r"(\w+) = 1", build), board.this_isa()
    lacks = [name for name, known in FEATURES.items() if name in isa and known not in used]
    generic = [f"{GENERIC_BUILD}: without this machine's {', '.join(lacks)}"] if lacks else []
    return [f"built with {' '.join(used)}", *generic]


def open_native(llama: Any, request: dict[str, Any], q8_0_cache: bool) -> Round:
    """Return a function that runs one prefill and greedy decode steps, each timed to the argmax of its token."""
    # 1. The model, with a log callback that prints nothing.
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(request["path"].encode(), llama.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp does not load {request['path']}")
    # 2. Its context.
    options = llama.llama_context_default_params()
    options.n_ctx = request["prompt"] + request["steps"] + 8
    options.n_batch = options.n_ubatch = max(512, request["prompt"])  # the prompt in one piece
    options.n_threads = options.n_threads_batch = request["threads"]
    if q8_0_cache:
        options.type_k = options.type_v = llama.GGML_TYPE_Q8_0
        options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED  # which its values need
    context = llama.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp makes no context of such a cache")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def next_id(ids: Sequence[int]) -> int:
        tokens = (llama.llama_token * len(ids))(*ids)
        if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError(f"llama.cpp does not decode {len(ids)} ids")
        return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (vocab,)).argmax())

    def run_round(ids: Sequence[int], steps: int) -> tuple[list[float], list[int]]:
        _ = quiet  # llama.cpp calls it as long as there is a context
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        times_s, generated = [time.perf_counter()], [next_id(ids)]
        times_s.append(time.perf_counter())
        for _ in range(steps):
            generated.append(next_id(generated[-1:]))
            times_s.append(time.perf_counter())
        return times_s, generated

    return run_round


def open_wheel(request: dict[str, Any], notes: list[str]) -> Opened:
    """Open llama.cpp through xllamacpp: its server in this process reports the time of the prompt and of each token."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["path"]
    params.n_ctx = request["prompt"] + request["steps"] + 8
    params.n_batch = params.n_ubatch = max(512, request["prompt"])  # the prompt in one piece
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    params.n_parallel = 1
    notes = [*notes, *features_of(xllamacpp.get_system_info())]
    if request["engine"] == WITH_Q8_0_CACHE:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED  # which its values need
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def run_round(ids: Sequence[int], steps: int) -> tuple[list[float], list[int]]:
        """Run one round, timed by the server's clock: `predicted_ms` counts from the first token, so differences are
        the steps."""
        body = {
            "prompt": list(ids), "n_predict": steps + 1, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
            "stream": True, "timings_per_token": True, "return_tokens": True,
        }  # fmt: skip
        chunks: list[dict[str, Any]] = []
        ended = threading.Event()

        def receive(data: Any) -> bool:
            chunk: dict[str, Any] = json.loads(data) if isinstance(data, str) else data
            chunks.append(chunk)
            if "error" in chunk or any(choice.get("finish_reason") for choice in chunk.get("choices", ())):
                ended.set()
            return False

        server.handle_completions(body, receive)
        if not ended.wait(timeout=60):
            raise RuntimeError(f"llama.cpp gave no end: {chunks[-1:]}")
        timings = {timing["predicted_n"]: timing for chunk in chunks if (timing := chunk.get("timings"))}
        if not {1, steps + 1} <= set(timings) or timings[1]["prompt_n"] != len(ids):
            raise RuntimeError(f"llama.cpp gave {len(timings)} tokens for {len(ids)} ids, {steps + 1} were requested")
        # A token that ends inside a character comes with the next one, so its time is interpolated.
        numbers = sorted(timings)
        ends_ms = np.interp(range(1, steps + 2), numbers, [timings[number]["predicted_ms"] for number in numbers])
        texts = [choice["text"] for chunk in chunks for choice in chunk["choices"] if choice["text"]]
        made_up = all(re.fullmatch(r"t\d+", text) for text in texts)  # token N is spelled tN
        times_ms = [ends_ms[0] - timings[1]["prompt_ms"], *ends_ms]
        return [float(ms) / 1e3 for ms in times_ms], [int(text[1:]) for text in texts] if made_up else []

    return f"{request['engine']} (xllamacpp {xllamacpp.__version__}) CPU", run_round, notes


def open_openvino(request: dict[str, Any]) -> Opened:
    """Open openvino-genai on the GGUF. It decodes in its own loop and calls back at each token."""
    import openvino
    import openvino_genai

    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": request["threads"]}
    attention = "SDPA" if request["steps"] else "paged"  # whichever is faster
    if attention == "SDPA":
        properties["ATTENTION_BACKEND"] = attention
    else:
        scheduler = properties["scheduler_config"] = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # else a second prefill of the same ids is free
        scheduler.max_num_batched_tokens = max(512, request["prompt"])  # the prompt in one piece
    pipeline = openvino_genai.LLMPipeline(request["path"], "CPU", **properties)
    notes = ["KV cache in 8 bits, its default", f"{attention} attention"]

    class Streamer(openvino_genai.StreamerBase):
        def __init__(self) -> None:
            super().__init__()
            self.times_s: list[float] = []

        def write(self, _: Any) -> Any:
            self.times_s.append(time.perf_counter())
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def run_round(ids: Sequence[int], steps: int) -> tuple[list[float], list[int]]:
        greedy = openvino_genai.GenerationConfig(max_new_tokens=steps + 1, ignore_eos=True, do_sample=False)
        streamer, prompt = Streamer(), openvino.Tensor(np.array([ids], np.int64))  # [1, sequence]
        begin_s = time.perf_counter()
        chosen = pipeline.generate(prompt, greedy, streamer).tokens[0]
        if not len(chosen) == len(streamer.times_s) == steps + 1:
            raise RuntimeError(f"openvino-genai gave {len(streamer.times_s)} tokens, {steps + 1} were requested")
        return [begin_s, *streamer.times_s], list(chosen)

    return f"openvino-genai {openvino_genai.__version__} CPU", run_round, notes


def open_genai(request: dict[str, Any]) -> Opened:
    """Open onnxruntime-genai on a copy of the bundle. Its cache has room for the ids of the case."""
    import onnxruntime_genai

    config = onnxruntime_genai.Config(request["path"])
    options = {"intra_op_num_threads": request["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = onnxruntime_genai.Model(config)

    def run_round(ids: Sequence[int], steps: int) -> tuple[list[float], list[int]]:
        length = len(ids) + steps + 1
        settings = onnxruntime_genai.GeneratorParams(model)
        settings.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = onnxruntime_genai.Generator(model, settings)
        times_s = [time.perf_counter()]
        generator.append_tokens(list(ids))
        for _ in range(steps + 1):
            generator.generate_next_token()
            times_s.append(time.perf_counter())
        return times_s, [int(token) for token in generator.get_sequence(0)][len(ids) :]

    note = "the bundle, with this project's kernels; end of text is masked until the last step"
    return f"onnxruntime-genai {onnxruntime_genai.__version__} CPU", run_round, [note]


OPENERS = {
    "transformers": open_transformers, "ctranslate2": open_ctranslate2, "llama_cpp": open_llama_cpp,
    "openvino": open_openvino, "onnxruntime_genai": open_genai,
}  # fmt: skip


def main() -> int:
    try:
        result = measure_peer(json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - whatever another engine throws is that row's reason
        result = {"error": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(result), flush=True)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
