"""The interface of a model's geometry: its operators, its graph, and its keys of config.json, both ways."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from merino_edge.families.graph_ops import GraphOps
from merino_edge.families.operators import Operator
from merino_edge.families.pre_norm import Decoder
from merino_edge.families.weights import Layout


class LayerShape(NamedTuple):
    """One use of a layer: channels of the residual stream, channels inside the FFN, query heads."""

    width: int
    ffn_width: int
    heads: int


class Geometry(Protocol):
    """A frozen pydantic model; each family has its own, with fields of its own."""

    @property
    def vocab(self) -> int:
        """Rows of the embedding, and logits."""

    @property
    def context(self) -> int:
        """The longest sequence in tokens."""

    @property
    def embed_width(self) -> int:
        """Channels of the embedding."""

    @property
    def operators(self) -> list[Operator]:
        """The operators in order of execution. Shared weights appear at each use."""

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        """(KV heads, head size) of each cache layer. A shared layer has one cache per use."""

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """The shapes of layers in order of use. A shared layer appears at each use."""

    def shape(self) -> str:
        """Return one line for people."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """Return the `architecture` object of bundle.json; as JSON has it with mode `json`."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """Build the geometry from such an object. Raise pydantic's ValidationError."""

    @classmethod
    def of_config(cls, config: Any) -> Self:
        """Return the geometry of transformers' configuration. Raise MerinoError or ValidationError for one that cannot
        be exported."""

    def words(self) -> dict[str, Any]:
        """Return arguments of transformers' configuration."""

    def build_graph(self, graph: GraphOps) -> None:
        """Write the whole graph: ids to logits of the last position."""

    def decoder(self) -> Decoder | None:
        """Return the names and roles of the weights, if `build_decoder` writes the graph; else None."""

    def layout(self, name: str) -> Layout | None:
        """Return how a weight of the state dict lies in the graph; None if both are alike."""

    def key_order(self) -> np.ndarray | None:
        """Return which channel of torch's keys the graph has at each place of a head; None if both are alike."""


Keys = Mapping[str, str]  # by field of a geometry: the key of config.json with the same value


def words_by(keys: Keys, geometry: Any) -> dict[str, Any]:
    """Return arguments of transformers' configuration."""
    values = {key: getattr(geometry, field) for field, key in keys.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def facts_by(keys: Keys, config: Any) -> dict[str, Any]:
    """Return fields of a geometry."""
    return {field: getattr(config, key) for field, key in keys.items()}
