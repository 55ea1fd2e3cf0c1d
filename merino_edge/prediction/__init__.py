"""Predicted costs of an inference on a board: latency, memory, files, energy."""
