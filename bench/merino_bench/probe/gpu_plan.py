"""What the probe of a GPU times: chains of matrix products, in float32 and in float16, and copies to the host.

A product of a chain needs the one before it, so the GPU runs them one after the other, a kernel each. Two chains of
small matrices tell a launch from what a run costs besides; one that no cache holds tells the read bandwidth, over one
new position, and the rate of products, over many.
"""
from typing import Tuple

# (side of the square matrices, their number): 64 MiB in float32 first, which brings the GPU's clock up
CHAINS: Tuple[Tuple[int, int], ...] = ((1024, 16), (64, 8), (64, 64))
PRECISIONS = ("fp32", "fp16")
TOKENS = 256  # where computing takes longer than reading the weights, on the boards' GPUs
COPY_BYTES = (2 ** 16, 2 ** 22)  # to the host: the difference of their times is that of the bytes
ENTRY_BYTES = 32  # width of the strided copy on the device, in place of that of new keys and values
