"""Data of a training run: sources of any format, tokenized once into memory-mapped shards, packed into rows."""
