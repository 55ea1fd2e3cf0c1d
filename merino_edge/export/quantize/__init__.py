"""Weights and KV cache in integers, by method: groups, GPTQ, SmoothQuant, scales of the cache."""
