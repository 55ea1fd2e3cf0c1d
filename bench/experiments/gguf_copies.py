"""Copies of a GGUF with its matrices in other types: the same metadata, the weights dequantised and rounded anew.

Rounding is the package gguf's, which is that of llama.cpp's reference code.
"""

from pathlib import Path

import gguf

TABLE = "token_embd.weight"


def write_copy(source: Path, out: Path, matrices: str, table: str) -> Path:
    """`matrices` and `table` (the embedding): names of types such as Q8_0. A copy that is there is kept."""
    if out.exists():
        return out
    reader = gguf.GGUFReader(source)
    begun = out.with_name(f".{out.name}.part")
    writer = gguf.GGUFWriter(begun, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = "F32" if len(tensor.shape) < 2 else table if tensor.name == TABLE else matrices
        form = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    begun.rename(out)
    return out
