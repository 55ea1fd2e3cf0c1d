"""llama.cpp beside a published model: its logits, and copies of a GGUF in other types."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np

from merino_edge.benchmarking.llama_cpp_native import described, lacking, library, loaded_model, native_build, version
from merino_edge.families.gguf.write import write_file
from merino_runtime.io.board import this_isa


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
            returned = [start + place >= first for place in range(len(part))]
            for place, token in enumerate(part):
                batch.token[place], batch.pos[place] = token, len(self.ids) + place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, returned[place]
            if self.llama.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp does not decode {len(part)} ids behind {len(self.ids)}")
            self.llama.llama_batch_free(batch)
            self.ids += part
            if any(returned):
                yield np.ctypeslib.as_array(self.llama.llama_get_logits(self._context), (sum(returned), self.vocab))


def write_copy(source: Path, out: Path, kind: str) -> Path:
    """A copy whose matrices are of a type such as Q8_0. One that is there is kept."""
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
         "F32" if len(tensor.shape) < 2 else kind)
        for tensor in reader.tensors
    )  # fmt: skip
    write_file(begun, reader.fields["general.architecture"].contents(), add_keys, tensors)
    begun.rename(out)
    return out
