"""What the rest of the project may ask of a model's geometry, whatever its family."""

from typing import Any, NamedTuple, Protocol, Self

from merino_edge.families.operators import Operator


class LayerShape(NamedTuple):
    """One use of a layer: channels of the residual stream, channels inside the FFN, heads of queries."""

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
        """In order of execution. Shared weights appear at each use."""

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        """(heads of keys, head size) of each cache layer. A shared layer has one cache per use."""

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """In order of use. A shared layer appears at each use."""

    def shape(self) -> str:
        """One line for people."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """The `architecture` object of bundle.json; as JSON has it with mode `json`."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """From such an object. Raises pydantic's ValidationError."""
