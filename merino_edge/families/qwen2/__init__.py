"""Qwen2 and Qwen2.5 (arXiv 2412.15115)."""
