"""Data of a training run: sources of any format, tokenised once into memory-mapped shards, packed into rows."""
