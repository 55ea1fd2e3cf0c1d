"""The predicted costs of one decoder on one board, as design.json, pareto.json and `recommend --json` hold them."""

from pydantic import BaseModel, ConfigDict

from merino_edge.prediction.intervals import Interval
from merino_edge.profiles.coefficients import Kind, ThreadCount


class Predicted(BaseModel):
    """Latency is of the KV cache when full and of the whole prompt. MB are 2^20 bytes, GFLOPs are at 1024 tokens.

    `j_per_token` is None where the profile has no watts of the busy board. `provenance` is the kind of the weakest
    coefficient used; the watts are not counted in it. The latencies hold for `decode_threads` and `prefill_threads`,
    which are None on a GPU.
    An interval (low, high) holds the measured value with probability `confidence`; None where no errors are known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    decode_ms: float
    decode_ms_interval: Interval | None
    prefill_ms: float
    prefill_ms_interval: Interval | None
    memory_mb: float
    flops_g: float
    params: int
    weight_bytes: int
    kv_bytes: int
    file_mb: float
    j_per_token: float | None
    j_per_token_interval: Interval | None
    confidence: float | None
    provenance: Kind
    decode_threads: ThreadCount | None
    prefill_threads: ThreadCount | None

    def interval(self, name: str) -> Interval | None:
        """Of the field of this name."""
        found: Interval | None = getattr(self, f"{name}_interval", None)
        return found

    def upper(self, name: str) -> float | None:
        """The upper end of the field's interval, or the field where it has none; None where there is no such field."""
        interval = self.interval(name)
        return interval[1] if interval else getattr(self, name, None)
