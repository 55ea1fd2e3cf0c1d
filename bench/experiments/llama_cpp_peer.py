"""llama.cpp beside a published model: its logits, the losses of a text by its server, and copies of a GGUF in other
types."""

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from merino_edge.benchmarking.llama_cpp_native import described, lacking, library, loaded_model, native_build, version
from merino_edge.families.gguf.write import write_file
from merino_runtime.io.board import this_isa

BIAS = 1e5  # larger than any logit
WAIT_S = 120.0
EMBEDDING = "token_embd.weight"


class LlamaCpp:
    """llama.cpp, the build of `make peers-native`, in the place of a bundle's backend, for one sequence.

    Shapes: logits_from yields [m, vocab], a batch of ids at a time, all their logits.
    """

    extends_fast = True

    def __init__(self, path: Path, context: int, threads: int) -> None:
        folder = native_build()
        if folder is None:
            raise SystemExit("no llama.cpp built for this machine: make peers-native")
        self.llama = llama = library(folder)
        self._model, self._quiet = loaded_model(llama, str(path))
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, 512, 512
        options.n_threads = options.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, options)
        self.context, self.ids = context, list[int]()
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self.engine = f"llama.cpp (llama-cpp-python {version(folder)}) CPU"
        lacks = lacking(described(folder), this_isa())
        if lacks:
            raise SystemExit(f"this llama.cpp lacks {', '.join(lacks)} of this machine: make peers-native")

    @property
    def length(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        """Its memory goes with the process."""

    def truncate(self, length: int) -> None:
        if length < len(self.ids):
            self.llama.llama_memory_seq_rm(self.llama.llama_get_memory(self._context), 0, length, -1)
            del self.ids[length:]

    def logits_from(self, first: int, ids: Sequence[int]) -> Iterator[np.ndarray]:
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            batch = self.llama.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            wanted = [start + place >= first for place in range(len(part))]
            for place, token in enumerate(part):
                batch.token[place], batch.pos[place] = token, len(self.ids) + place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, wanted[place]
            if self.llama.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp does not decode {len(part)} ids behind {len(self.ids)}")
            self.llama.llama_batch_free(batch)
            self.ids += part
            if any(wanted):
                yield np.ctypeslib.as_array(self.llama.llama_get_logits(self._context), (sum(wanted), self.vocab))


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
