"""The walk through LLaMA."""

from merino_edge.families.graph_ops import GraphOps
from merino_edge.families.llama.geometry import LlamaArchitecture
from merino_edge.families.pre_norm import walk_decoder


def walk_llama(graph: GraphOps, arch: LlamaArchitecture) -> None:
    """Write the whole graph: ids to logits of the last position."""
    walk_decoder(graph, arch.decoder())
