"""Gemma 3 (arXiv 2503.19786), its decoder of text."""
