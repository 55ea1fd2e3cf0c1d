"""LLaMA and what is built like it: SmolLM, SmolLM2, TinyLlama, Llama 3.2 (arXiv 2302.13971)."""
