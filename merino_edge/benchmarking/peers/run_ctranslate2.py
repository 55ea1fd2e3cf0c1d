"""CTranslate2's Generator: it decodes by itself and calls back at each token, which is when we read the clock."""

import time
from collections.abc import Sequence
from typing import Any


def open_peer(request: dict[str, Any]) -> tuple[str, Any, list[str]]:
    """-> engine with version, a function of (ids, steps) that runs one round, notes."""
    import ctranslate2

    generator = ctranslate2.Generator(
        request["path"], device="cpu", compute_type=request["precision"], inter_threads=1,
        intra_threads=request["threads"],
    )  # fmt: skip

    def run_round(ids: Sequence[int], steps: int) -> tuple[float, list[float], list[int]]:
        moments, chosen = [time.perf_counter()], []

        def stop_here(step: Any) -> bool:
            moments.append(time.perf_counter())
            chosen.append(step.token_id)
            return False

        generator.generate_batch(
            [[f"t{token}" for token in ids]], max_length=steps + 1, min_length=steps + 1, beam_size=1, sampling_topk=1,
            include_prompt_in_result=False, callback=stop_here,
        )  # fmt: skip
        times_ms = [1e3 * (end - start) for start, end in zip(moments, moments[1:], strict=False)]
        if len(times_ms) != steps + 1:
            raise RuntimeError(f"CTranslate2 gave {len(times_ms)} tokens, {steps + 1} were asked for")
        return times_ms[0], times_ms[1:], chosen

    note = f"computes in {generator.compute_type}; end of text is masked until the last step"
    return f"CTranslate2 {ctranslate2.__version__} CPU", run_round, [note]
