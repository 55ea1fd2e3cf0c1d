"""transformers on the CPU: the model's forward over its own cache, as torch runs it or compiled by torch.compile."""

import time
from collections.abc import Sequence
from typing import Any


def open_peer(request: dict[str, Any]) -> tuple[str, Any, list[str]]:
    """-> engine with versions, a function of (ids, steps) that runs one round, notes."""
    import torch
    import transformers

    import merino_edge.families.hugging_face  # noqa: F401 - registers what transformers does not have

    torch.set_num_threads(request["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(request["path"], dtype=torch.float32).eval()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__} CPU"
    if request["engine"] == "torch.compile":
        slots = request["prompt"] + request["steps"]
        cache = transformers.StaticCache(config=model.config, max_cache_len=slots)
        run_round = Round(torch.compile(model, dynamic=False), cache)
        for _ in range(2):  # the first one allocates the cache, which makes torch compile again in the second
            run_round([0] * request["prompt"], min(request["steps"], 2))
        note = f"static cache of {slots} slots, compiled for the prompt's length and for one token, within load_ms"
        return f"torch.compile, {versions}", run_round, [note]
    note = f"attention: {model.config._attn_implementation}; logits of the last position"
    return versions, Round(model, None), [note]


class Round:
    """One prefill and `steps` decode steps, greedy, each timed to the choice of its token."""

    def __init__(self, model: Any, cache: Any) -> None:
        self.model = model
        self.static = cache  # None: a new dynamic cache for each round

    def __call__(self, ids: Sequence[int], steps: int) -> tuple[float, list[float], list[int]]:
        import torch

        with torch.inference_mode():
            if self.static is not None:
                self.static.reset()
            cache, chosen, times_ms = self.static, [], []
            tokens, begin = torch.tensor([ids]), 0  # [1, sequence]
            for _ in range(steps + 1):
                start = time.perf_counter()
                positions = torch.arange(begin, begin + tokens.shape[1])[None]  # [1, sequence]
                out = self.model(
                    input_ids=tokens, position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1
                )
                cache, begin = out.cache, begin + tokens.shape[1]
                chosen.append(int(out.logits[0, -1].argmax()))
                times_ms.append(1e3 * (time.perf_counter() - start))
                tokens = torch.tensor([[chosen[-1]]])
        return times_ms[0], times_ms[1:], chosen
