"""llama.cpp through xllamacpp: its server in this process, which reports the time of the prompt and of each token."""

import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from merino_edge.benchmarking.peers.engines import WITH_Q8_0_CACHE


def open_peer(request: dict[str, Any]) -> tuple[str, Any, list[str]]:
    """-> engine with version, a function of (ids, steps) that runs one round, notes."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["path"]
    params.n_ctx = request["prompt"] + request["steps"] + 8
    params.n_batch = params.n_ubatch = max(512, request["prompt"])  # the prompt in one piece
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    params.n_parallel = 1
    notes = ["KV cache in float16, its default", "times by its own clock"]
    if request["engine"] == WITH_Q8_0_CACHE:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED  # which its values need
        notes[0] = "KV cache in Q8_0"
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def run_round(ids: Sequence[int], steps: int) -> tuple[float, list[float], list[int]]:
        """Its own clock: `predicted_ms` counts from the first token, so differences are the steps."""
        wanted = {
            "prompt": list(ids), "n_predict": steps + 1, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
            "stream": True, "timings_per_token": True, "return_tokens": True,
        }  # fmt: skip
        answers: list[Any] = []
        ended = threading.Event()

        def take(answer: Any) -> bool:
            answers.append(answer)
            if last_of(answer):
                ended.set()
            return False

        server.handle_completions(wanted, take)
        if not ended.wait(timeout=60):
            raise RuntimeError(f"llama.cpp gave no end: {answers[-1:]}")
        timings = {one["predicted_n"]: one for answer in map(as_object, answers) if (one := answer.get("timings"))}
        if not {1, steps + 1} <= set(timings) or timings[1]["prompt_n"] != len(ids):
            raise RuntimeError(f"llama.cpp gave {len(timings)} tokens for {len(ids)} ids, {steps + 1} were asked for")
        # Tokens that end inside a character come with the next one: their time lies between those beside them.
        known = sorted(timings)
        ends = np.interp(range(1, steps + 2), known, [timings[number]["predicted_ms"] for number in known])
        ends_ms = [float(end) for end in ends]
        step_ms = [after - before for before, after in zip(ends_ms, ends_ms[1:], strict=False)]
        texts = [choice["text"] for answer in map(as_object, answers) for choice in answer["choices"] if choice["text"]]
        made_up = all(re.fullmatch(r"t\d+", text) for text in texts)  # token N is spelled tN
        return timings[1]["prompt_ms"], step_ms, [int(text[1:]) for text in texts] if made_up else []

    return f"{request['engine']} (xllamacpp {xllamacpp.__version__}) CPU", run_round, notes


def as_object(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer) if isinstance(answer, str) else answer
    return found


def last_of(answer: Any) -> bool:
    found = as_object(answer)
    return "error" in found or any(choice.get("finish_reason") for choice in found.get("choices", ()))
