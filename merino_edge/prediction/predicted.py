"""The predicted costs of one decoder on one board, as design.json, pareto.json and `recommend --json` hold them."""

from pydantic import BaseModel, ConfigDict

from merino_edge.profiles.coefficients import Kind


class Predicted(BaseModel):
    """Latency is of the KV cache when full and of the whole prompt. MB are 2^20 bytes, GFLOPs are at 1024 tokens.

    `j_per_token` is None where the profile has no `power.stress_w`. `provenance` is the kind of the weakest
    coefficient used; the watts are not counted in it. The latencies hold for `decode_threads` and `prefill_threads`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode_ms: float
    prefill_ms: float
    memory_mb: float
    flops_g: float
    params: int
    weight_bytes: int
    kv_bytes: int
    file_mb: float
    j_per_token: float | None
    provenance: Kind
    decode_threads: int
    prefill_threads: int
