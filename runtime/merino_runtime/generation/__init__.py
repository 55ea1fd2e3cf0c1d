"""Text from a model: tokenizer, sampling, the decode loop, the KV cache on disk."""
