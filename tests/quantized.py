"""A source's matrices as an export quantizes them without calibration."""

from merino_edge.export.quantize.weights import Rounding, quantized_matrices
from merino_edge.export.source import graph_weights


def quantized(source, form):
    """{names joined with `+`: QuantizedMatrix}"""
    return quantized_matrices(source.arch, graph_weights(source), form, Rounding(source.blocks))


def parts(matrices):
    """The names of all matrices, each by itself."""
    return [name for joined in matrices for name in joined.split("+")]
