"""Measures what a machine can do: memory bandwidth, operators, decoders, resident memory."""
