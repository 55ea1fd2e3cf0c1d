"""What smoothing brings to int8 without dotprod: perplexity of a published model, simulated in torch.

    python bench/experiments/smoothing.py --model FILE.gguf --text wikitext2_test.txt --calibrate OTHER.txt -o FILE

Weights have one scale per row, activations 8 bits as DynamicQuantizeLinear rounds them: in a decode step each row by
itself; in a prompt all rows by one scale, but those behind a gated activation over their largest values first.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import tokenizers
import torch
from smoothing_factors import smooth
from write_record import write_record

from merino_edge.export.quantisation.groups import dequantize, quantize_groups
from merino_edge.export.source import load_source
from merino_edge.text.documents import read_documents
from merino_edge.text.rows import PackedTokens

WINDOW, CALIBRATION = 256, 4  # tokens of a window; windows of the other text
SAME = 1e-3  # allowed difference between losses with the factors and without, in nats


def rounded(x: torch.Tensor, one_scale: bool) -> torch.Tensor:
    """x [..., T, in] as DynamicQuantizeLinear rounds it: each row by itself, or all rows by `one_scale`."""
    axes = (-2, -1) if one_scale else (-1,)
    low, high = x.amin(axes, keepdim=True).clamp(max=0), x.amax(axes, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-30)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def rounded_over_largest(x: torch.Tensor) -> torch.Tensor:
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return rounded(x / largest, True) * largest


@contextmanager
def rounding(model: torch.nn.Module, of: Callable[[str], Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(partial(replaced, of(name)))
        for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    ]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def replaced(how: Callable[[torch.Tensor], torch.Tensor], _module: Any, given: tuple[torch.Tensor, ...]) -> Any:
    return (how(given[0]), *given[1:])


def decoding(_: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: rounded(x, False)


def prefilling(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return rounded_over_largest if name.endswith("down_proj") else lambda x: rounded(x, True)


def round_weights(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            matrix = module.weight.detach().numpy()
            module.weight.data = torch.from_numpy(
                dequantize(quantize_groups(matrix, 8, matrix.shape[1], both_signs=True))
            )


class Read(NamedTuple):
    """Of a window: mean loss in nats, and mean divergence (Kullback-Leibler) from what float32 says of a next token."""

    loss: float
    divergence: float


@torch.no_grad()
def read(model: Any, rows: torch.Tensor, right: list[torch.Tensor]) -> list[Read]:
    """`right`: log probabilities of each window in float32, filled at the first call."""
    found = []
    for place, row in enumerate(rows):
        said = torch.log_softmax(model(input_ids=row[None]).logits[0], -1)
        if len(right) == place:
            right.append(said.half())
        known = right[place].float()
        loss = -said[:-1].gather(1, row[1:, None]).mean()
        found.append(Read(float(loss), float((known.exp() * (known - said)).sum(-1).mean())))
    return found


def row_of(name: str, found: list[Read], base: list[Read]) -> dict[str, Any]:
    """`change`: of the perplexity, with its standard error between windows."""
    off = [one.loss - other.loss for one, other in zip(found, base, strict=True)]
    row = {
        "form": name, "perplexity": math.exp(mean(each.loss for each in found)), "change": math.expm1(mean(off)),
        "standard_error": stdev(off) / math.sqrt(len(off)), "divergence": mean(each.divergence for each in found),
    }  # fmt: skip
    print(row, flush=True)
    return row


def windows_of(path: Path, count: int, tokenizer: tokenizers.Tokenizer) -> torch.Tensor:
    """Ids [count, WINDOW] from all over a text."""
    rows = PackedTokens(read_documents([path], "a text"), tokenizer, WINDOW).rows
    return rows[:: max(1, len(rows) // count)][:count].long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, required=True, help="another text")
    parser.add_argument("--windows", type=int, default=3, help="default %(default)s")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    given = parser.parse_args()
    source = load_source(str(given.model))
    tokenizer = tokenizers.Tokenizer.from_str(str(source.tokenizer))
    text = windows_of(given.text, given.windows, tokenizer)
    right: list[torch.Tensor] = []
    base = read(source.model, text, right)
    rows = [row_of("float32", base, base)]
    moved = copy.deepcopy(source.model)
    smooth(moved, source.arch, windows_of(given.calibrate, CALIBRATION, tokenizer))
    same = read(moved, text[:1], right)[0]
    assert abs(same.loss - base[0].loss) < SAME, "the factors changed what the model computes"
    for name, model in (("smoothed", moved), ("as it is", source.model)):
        round_weights(model)
        rows.append(row_of(f"{name}, weights", read(model, text, right), base))
        for form, how in {"decode": decoding, "prompt": prefilling}.items():
            with rounding(model, how):
                rows.append(row_of(f"{name}, {form}", read(model, text, right), base))
    record = {
        "schema": 1, "model": given.model.name, "text": given.text.name, "calibrate": given.calibrate.name,
        "window": WINDOW, "windows": given.windows, "rows": rows,
    }  # fmt: skip
    write_record(given.out, record)


if __name__ == "__main__":
    main()
