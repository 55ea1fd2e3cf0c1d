"""Benchmark records as the workstation reads and compares them."""
