"""A GGUF's tensors under the names, and in the layouts, of Hugging Face's class of the same model.

Names are mapped by the package gguf. This module undoes the changes of llama.cpp's converter: the order of the rows of
queries and keys, the 1 that it adds to Gemma's norms, GPT-2's transposed matrices, the interleaved queries, keys and
values of GPT-NeoX and BLOOM, Gemma 3n's stacked matrices.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from gguf import MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map

from merino_edge.families.gguf.blocks import bits_of, blocks_of, weights_of
from merino_edge.families.gguf.file import AGAIN, GgufFile
from merino_edge.families.gguf.metadata import LONG_FACTORS, ROPE_FACTORS
from merino_edge.families.weights import ROW_BLOCK, Blocks
from merino_edge.families.weights import Layout as GraphLayout
from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError

# llama.cpp rotates neighbors there, and Hugging Face halves: the rows are in another order.
PAIRS_APART = ("llama", "granite", "smollm3", "mistral3")
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # of GPT-2: [in, out] in Hugging Face
UNUSED = {ROPE_FACTORS, *LONG_FACTORS.values()}  # read into the configuration
STACKED = re.compile(r"model\.altup_(unembed_)?projections\.(\d+)\.weight")
SHARED = re.compile(r"blk\.\d+\.attn_(k|v|k_norm)\.weight")  # of layers that read another's cache


class Layout(NamedTuple):
    """How a tensor differs from Hugging Face's. `rows`: the file's row for each row there; None: the same order.
    `taps`: whether it is [width, taps] instead of [width, 1, taps]."""

    stored: str  # the tensor's name in the file
    rows: np.ndarray | None = None
    transposed: bool = False
    added: float = 0.0
    place: int | None = None  # of the matrix within a stack
    taps: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape there of a tensor that has the shape `stored` in the file."""
        if self.taps:
            return stored[0], 1, *stored[1:]
        return stored[::-1] if self.transposed else stored


def layouts(file: GgufFile, geometry: Any, names: Iterable[str]) -> dict[str, Layout]:
    """Return the layouts of `names`, the state dict of Hugging Face's class without a tied head.

    Raise MerinoError if the file lacks a tensor, or has one that the model does not.
    """
    architecture = file.metadata["general.architecture"]
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(number, geometry.layers)
    by_name = {}
    for name in names:
        stored, place = stored_name(known, name)
        if stored is None or stored not in file.tensors:
            raise MerinoError(
                f"{file.path} lacks {shortened(repr(stored or name))}, which the model it describes has. {AGAIN}"
            )
        by_name[name] = layout(architecture, geometry, name, stored)._replace(place=place)
    spare = sorted(set(file.tensors) - {tensor.stored for tensor in by_name.values()} - UNUSED)
    if getattr(geometry, "shared_layers", 0):
        spare = [name for name in spare if not SHARED.fullmatch(name)]
    if spare:
        raise MerinoError(
            f"{file.path} has tensors that the {architecture} it describes has not: {shortened(', '.join(spare), 200)}."
            f" {AGAIN}"
        )
    return by_name


def stored_name(known: TensorNameMap, name: str) -> tuple[str | None, int | None]:
    """Return the name of a weight in the file, and its place if it is one of a stack; None for an unknown weight."""
    if match := STACKED.fullmatch(name):
        return f"altup_{'unembd_' if match[1] else ''}proj.weight", int(match[2])
    stored = known.get_name(name, (".weight", ".bias")) or known.get_name(
        name.removeprefix("transformer."), (".weight", ".bias")
    )
    return f"{stored}.weight" if name.endswith("_scale") else stored, None


def layout(architecture: str, geometry: Any, name: str, stored: str) -> Layout:
    part, heads, size = stored.split(".")[-2], geometry.heads, geometry.head_size
    if architecture in PAIRS_APART and part in ("attn_q", "attn_k"):
        return Layout(stored, halves_together(heads if part == "attn_q" else geometry.kv_heads, size))
    if architecture in ("gemma", "gemma2", "gemma3") and part.endswith("_norm"):
        return Layout(stored, added=-1.0)
    if architecture in ("gptneox", "bloom") and part == "attn_qkv":
        return Layout(stored, np.arange(3 * heads * size).reshape(3, heads, size).swapaxes(0, 1).reshape(-1))
    if part == "conv":
        return Layout(stored, taps=True)
    return Layout(stored, transposed=architecture == "gpt2" and name.endswith(CONV1D))


def halves_together(heads: int, size: int) -> np.ndarray:
    """Return the file's rows in Hugging Face's order. Within a head the file has element 0, size/2, 1, size/2 + 1, ...:
    the even places first, then the odd ones."""
    return np.arange(heads * size).reshape(heads, size // 2, 2).swapaxes(1, 2).reshape(-1)


def tensors(file: GgufFile, forms: Mapping[str, Layout]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield name, first row and rows in float32 as Hugging Face has them. A matrix that lies as there comes in parts,
    because an embedding may have a GB."""
    for name, form in forms.items():
        shape = file.tensors[form.stored].shape
        if len(shape) == 2 and form.rows is None and form == Layout(form.stored):
            for first in range(0, shape[0], ROW_BLOCK):
                yield name, first, weights_of(file, form.stored, slice(first, first + ROW_BLOCK))
            continue
        value = weights_of(file, form.stored)
        value = value if form.place is None else value[form.place]
        if form.rows is not None:
            if len(form.rows) != len(value):
                raise MerinoError(
                    f"{file.path}: {form.stored} has {len(value)} rows, its metadata describes {len(form.rows)}."
                    f" {AGAIN}"
                )
            value = value[form.rows]
        value = (value.T if form.transposed else value).reshape(form.shape(value.shape))
        yield name, 0, value + np.float32(form.added) if form.added else value


class StoredBlocks(NamedTuple):
    """The blocks of a file's matrices as they are stored, by their name in the state dict; [out, in], rows in the order
    in which the graph has them. `in_graph`: how a matrix of the state dict lies there, None if both are alike."""

    file: GgufFile
    layouts: Mapping[str, Layout]
    in_graph: Callable[[str], GraphLayout | None]

    def kind(self, name: str) -> str:
        """Return the type in which the file has it, such as `Q4_1`."""
        return str(self.file.tensors[self.layouts[name].stored].kind.name)

    def bits(self, name: str) -> int | None:
        return bits_of(self.file.tensors[self.layouts[name].stored].kind)

    def blocks(self, name: str) -> Blocks | None:
        """None if the matrix is stored in float, or in blocks without equal steps. Reads that tensor again."""
        form = self.layouts[name]
        stored = blocks_of(self.file, form.stored)
        graph = self.in_graph(name)
        if stored is None or form.transposed:  # the graph transposes it back
            return stored
        if form.rows is None and graph is None:
            return stored  # not a copy: an embedding's levels have hundreds of MB
        order = np.arange(len(stored.levels)) if form.rows is None else form.rows
        return stored.rows(graph.to_graph(order[:, None])[:, 0] if graph else order)
