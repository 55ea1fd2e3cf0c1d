"""GGUF files, as llama.cpp has them, as sources: structure, blocks, configuration, names of tensors, tokenizer."""
