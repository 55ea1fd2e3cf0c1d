"""A regime: what must be fixed so that the costs of a decoder are sums over its operators."""

from dataclasses import dataclass

from merino_edge.prediction.latency import Residency


@dataclass(frozen=True)
class Regime:
    """Thread counts (None: the backend has none, as on a GPU) and residency. Under one regime all costs but activation
    memory are sums over operators."""

    decode_threads: int | None
    prefill_threads: int | None
    residency: Residency

    @property
    def sessions(self) -> int:
        """Thread counts that differ take two sessions, and each prepacks the weights for itself."""
        return 1 if self.decode_threads == self.prefill_threads else 2
