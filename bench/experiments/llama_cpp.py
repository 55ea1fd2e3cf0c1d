"""llama.cpp beside a published model: the losses of a text by its server, and copies of a GGUF in other types."""

import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf

from merino_edge.families.gguf.write import write_file

BIAS = 1e5  # larger than any logit
WAIT_S = 120.0
EMBEDDING = "token_embd.weight"


def open_model(path: Path, context: int, threads: int) -> Callable[[Sequence[int]], list[float]]:
    """A function of ids [n] -> losses [n - 1] in nats, of each id behind those before it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), context + 8, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def losses(ids: Sequence[int]) -> list[float]:
        return [loss_of(server, list(ids[:index]), ids[index]) for index in range(1, len(ids))]

    return losses


def loss_of(server: Any, before: list[int], token: int) -> float:
    request = {
        "prompt": before, "n_predict": 1, "temperature": 0, "n_probs": 1, "logit_bias": [[token, BIAS]],
        "cache_prompt": True, "ignore_eos": False, "stream": False, "return_tokens": True,
    }  # fmt: skip
    answers: list[Any] = []
    ended = threading.Event()

    def take(answer: Any) -> bool:
        answers.append(json.loads(answer) if isinstance(answer, str) else answer)
        ended.set()
        return False

    server.handle_completions(request, take)
    if not ended.wait(WAIT_S):
        raise RuntimeError(f"llama.cpp gave no answer behind {len(before)} ids")
    candidate = probability(answers[0])
    if candidate["id"] != token:
        raise RuntimeError(f"llama.cpp chose {candidate['id']}, and {token} was requested: {answers[0]}")
    return -float(candidate["logprob"]) if math.isfinite(candidate["logprob"]) else math.inf


def probability(answer: dict[str, Any]) -> dict[str, Any]:
    """Of the one token: `id` and `logprob`."""
    known = answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"]
    return dict(known[0])


def write_copy(source: Path, out: Path, matrices: str, embedding: str) -> Path:
    """`matrices` and `embedding`: names of types such as Q8_0. A copy that is there is kept."""
    if out.exists():
        return out
    reader = gguf.GGUFReader(source)
    begun = out.with_name(f".{out.name}.part")

    def add_keys(writer: gguf.GGUFWriter) -> None:
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)

    tensors = (
        (tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type),
         "F32" if len(tensor.shape) < 2 else embedding if tensor.name == EMBEDDING else matrices)
        for tensor in reader.tensors
    )  # fmt: skip
    write_file(begun, reader.fields["general.architecture"].contents(), add_keys, tensors)
    begun.rename(out)
    return out
