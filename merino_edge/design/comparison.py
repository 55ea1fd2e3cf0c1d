"""The comparison score, by which designs that differ in vocabulary or weight format are ranked (ours).

The entropy of a decoder sees neither, so under any limit the smallest vocabulary and the fewest bits would win. Two
measured facts stand against that. A step writes one token, and a token of a larger vocabulary is more text; a format of
fewer bits raises the perplexity. So designs are ranked by entropy x bytes of text per token x equivalent share of
parameters. With one vocabulary and one format the factor is the same for all, and entropy alone decides.
`docs/search.md` has the measurements.
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

    Beyond the largest measured vocabulary nothing is gained.
    """
    sizes = sorted(BYTES_PER_TOKEN)
    size = min(max(vocab, sizes[0]), sizes[-1])
    above = next(index for index, known in enumerate(sizes) if known >= size)
    low, high = sizes[max(0, above - 1)], sizes[above]
    part = math.log(size / low) / math.log(high / low) if high > low else 1.0
    return BYTES_PER_TOKEN[low] + part * (BYTES_PER_TOKEN[high] - BYTES_PER_TOKEN[low])


def equivalent_parameters(precision: str, exponent: float = LOSS_EXPONENT) -> float:
    """Share of its parameters with which a float32 model has the loss of this one in the format.

    0.997 for int8, 0.890 for int4 by Kaplan's exponent; 1 for a format whose perplexity was not measured.
    """
    full = math.log(PERPLEXITY["fp32"])
    return (full / math.log(PERPLEXITY.get(precision, PERPLEXITY["fp32"]))) ** (1 / exponent)


def comparison_factor(vocab: int, precision: str, exponent: float = LOSS_EXPONENT) -> float:
    """Comparison score per unit of the score, in bytes of text per token. `exponent`: the measured law has its own."""
    return bytes_per_token(vocab) * equivalent_parameters(precision, exponent)
