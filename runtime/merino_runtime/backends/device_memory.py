"""Lays out arrays in one allocation, and plans the strided copies of new keys and values into the KV cache.

This only computes numbers. Sizes and offsets are in bytes.
"""
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

ALIGNMENT = 256  # of every address that TensorRT is given


class Field(NamedTuple):
    name: str
    dtype: str
    shape: Tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Layout(NamedTuple):
    offsets: Dict[str, int]  # in the order of the fields
    size: int


class StridedCopy(NamedTuple):
    """Copies one row per head. The starts of the rows are a pitch apart, in the cache and in the new entries."""
    to: int  # offset of the cache's row
    source: int  # offset of the new entries' row
    to_pitch: int  # context * entry
    pitch: int  # new ids * entry
    entry: int  # bytes of one id's key or value in one head
    rows: int


def laid_out(fields: Sequence[Field], start: int = 0) -> Layout:
    """Return the fields one after the other, each at a multiple of ALIGNMENT."""
    offsets, end = {}, start
    for field in fields:
        offsets[field.name] = aligned(end)
        end = offsets[field.name] + field.size
    return Layout(offsets, end)


def aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def cache_copies(caches: Sequence[Field], cache_at: Dict[str, int], new_at: Dict[str, int], count: int
                 ) -> List[StridedCopy]:
    """Return the copies that move new entries [1, heads, count, head_size] into caches [1, heads, context, head_size].
    new_at: by the name of the cache.

    There is one copy per cache; neighbors that touch in both places are joined, so a model whose heads have one size
    usually needs one copy for all its layers.
    """
    copies: List[StridedCopy] = []
    for field in caches:
        _, heads, context, head_size = field.shape
        entry = head_size * np.dtype(field.dtype).itemsize
        copy = StridedCopy(to=cache_at[field.name], source=new_at[field.name], to_pitch=context * entry,
                           pitch=count * entry, entry=entry, rows=heads)
        if copies:
            last = copies[-1]
            joined = last._replace(to=last.to + last.rows * last.to_pitch, source=last.source + last.rows * last.pitch,
                                   rows=heads)
            if joined == copy:  # it starts where the last one ends, in both places
                copies[-1] = last._replace(rows=last.rows + heads)
                continue
        copies.append(copy)
    return copies
