"""Copies of a GGUF with its matrices in other types: the same metadata, the weights dequantised and rounded anew.

Rounding is the package gguf's, which is that of llama.cpp's reference code.
"""

from pathlib import Path

import gguf

from merino_edge.families.gguf.write import write_file

TABLE = "token_embd.weight"


def write_copy(source: Path, out: Path, matrices: str, table: str) -> Path:
    """`matrices` and `table` (the embedding): names of types such as Q8_0. A copy that is there is kept."""
    if out.exists():
        return out
    reader = gguf.GGUFReader(source)

    def add_keys(writer: gguf.GGUFWriter) -> None:
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)

    tensors = (
        (tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type),
         "F32" if len(tensor.shape) < 2 else table if tensor.name == TABLE else matrices)
        for tensor in reader.tensors
    )  # fmt: skip
    begun = out.with_name(f".{out.name}.part")
    write_file(begun, reader.fields["general.architecture"].contents(), add_keys, tensors)
    begun.rename(out)
    return out
