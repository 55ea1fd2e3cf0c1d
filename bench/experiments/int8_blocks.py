"""What int8 loses of a published model by the size of its blocks, with channels scaled and without: simulated in torch.

    python bench/experiments/int8_blocks.py --model FILE.gguf --text wikitext2_test.txt -o FILE

Weights and activations have blocks of one length, as MatMulNBits rounds them: each block of an input by its largest
value. What the file has in blocks of 8 bits stays as it is. Beside perplexity the divergence from what float32 says of
the next token (Kullback-Leibler) is measured: it tells forms apart on far less text.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
from quality import windows_of
from smoothing import read, replaced, row_of
from write_record import write_record

from merino_edge.export.quantisation.groups import dequantize, fits, quantize_groups
from merino_edge.export.quantisation.smoothquant import rows_to_read, smoothed
from merino_edge.export.source import Source, load_source

LARGEST = 127  # of codes of an activation
FORMS = {"blocks of 32": (32, 32), "blocks of 64": (64, 64), "blocks of 64 and 128": (64, 128)}


def rounded(x: torch.Tensor, block: int) -> torch.Tensor:
    """x [..., in], each block of a row by its largest value."""
    cut = x.reshape(*x.shape[:-1], -1, block)
    scale = (cut.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=1e-30)
    return ((cut / scale).round() * scale).reshape(x.shape)


@contextmanager
def in_int8(source: Source, narrow: int, wide: int) -> Iterator[None]:
    """Products in blocks of `wide` where that divides the input, else of `narrow`; matrices that the file has in 8 bits
    in its own."""
    kept, hooks = {}, []
    table = source.arch.decoder().head  # type: ignore[attr-defined]
    for name, module in source.model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        head = module is source.model.get_output_embeddings()
        found = source.blocks.blocks(table if head else f"{name}.weight") if source.blocks else None
        exact = found is not None and fits(found, 8)
        columns = module.weight.shape[1]
        block = found.block if found is not None and exact else wide if columns % wide == 0 else narrow
        hooks.append(module.register_forward_pre_hook(partial(replaced, partial(rounded, block=block))))
        if not exact:
            kept[module] = module.weight.data
            module.weight.data = torch.from_numpy(dequantize(quantize_groups(module.weight.detach().numpy(), 8, block)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in kept.items():
            module.weight.data = weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=6, help="default %(default)s")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window; default %(default)s")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    source = load_source(str(given.model))
    order, ids = windows_of(given.text, tokenizers.Tokenizer.from_str(str(source.tokenizer)))
    text = torch.from_numpy(ids[order[: given.windows], : given.length]).long()
    right: list[torch.Tensor] = []
    base = read(source.model, text, right)
    rows: list[dict[str, Any]] = [row_of("float32", base, base)]
    scaled = smoothed(source, lambda: rows_to_read(source, 1024, None))
    rows.append(row_of("float32, scaled", read(scaled.model, text, right), base))
    for name, form in FORMS.items():
        for model, kind in ((source, ""), (scaled, ", scaled")):
            with in_int8(model, *form):
                rows.append(row_of(f"{name}{kind}", read(model.model, text, right), base))
    record = {
        "schema": 1, "model": given.model.name, "text": given.text.name, "window": given.length,
        "windows": given.windows, "rows": rows,
    }  # fmt: skip
    write_record(given.out, record)


if __name__ == "__main__":
    main()
