"""What a vocabulary and a weight format are worth, so that designs which differ in them can be compared (ours).

The entropy of a decoder knows neither: whatever the budget, the smallest vocabulary and the fewest bits would win.
Two measured facts stand against that. A step writes one token, and a token of a larger vocabulary is more text; and a
format of fewer bits raises the perplexity. So designs are compared by their worth, entropy x bytes of text per token x
the share of its parameters that a model keeps in the format. One vocabulary and one format: the factor is the same for
all, and the design of most entropy is the best. `docs/search.md` has the measurements.
"""

import math

# Bytes of held-out text per token: byte-level BPE trained on 13 MB of stories and novels, the mean over three texts
# (bench/experiments/fertility.py, bench/results/fertility.json). 257 entries are the bytes and an end of text.
BYTES_PER_TOKEN = {
    257: 1.0, 512: 2.1328, 1024: 2.7057, 2048: 3.1278, 4096: 3.4567, 8192: 3.7294, 16384: 3.9204, 32768: 4.0643,
    50257: 4.1648,
}  # fmt: skip
# Perplexity of the embedded model in each format, 20,000 held-out tokens, the board's runtime.
PERPLEXITY = {"fp32": 9.727, "int8": 9.731, "int4": 9.926}
LOSS_EXPONENT = 0.076  # loss falls with parameters to this power (Kaplan et al. 2020, arXiv 2001.08361)


def bytes_per_token(vocab: int) -> float:
    """Bytes of text per token, linear in the logarithm of the vocabulary between the measured sizes.

    A vocabulary larger than measured is worth no more than the largest measured one.
    """
    sizes = sorted(BYTES_PER_TOKEN)
    size = min(max(vocab, sizes[0]), sizes[-1])
    above = next(index for index, known in enumerate(sizes) if known >= size)
    low, high = sizes[max(0, above - 1)], sizes[above]
    part = math.log(size / low) / math.log(high / low) if high > low else 1.0
    return BYTES_PER_TOKEN[low] + part * (BYTES_PER_TOKEN[high] - BYTES_PER_TOKEN[low])


def format_credit(precision: str) -> float:
    """The share of its parameters with which a float32 model would be as good as this one in the format.

    0.997 for int8, 0.890 for int4; 1 for a format whose perplexity was not measured.
    """
    full = math.log(PERPLEXITY["fp32"])
    return (full / math.log(PERPLEXITY.get(precision, PERPLEXITY["fp32"]))) ** (1 / LOSS_EXPONENT)


def credit(vocab: int, precision: str) -> float:
    """Worth of a nat of entropy, in bytes of text per token."""
    return bytes_per_token(vocab) * format_credit(precision)
