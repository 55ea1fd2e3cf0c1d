"""Copies of a GGUF in other types, for llama.cpp."""

from pathlib import Path

import gguf

from merino_edge.families.gguf.write import write_file


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
