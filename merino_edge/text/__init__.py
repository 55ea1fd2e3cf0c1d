"""Text: files of it, tokenizers, rows of token ids, and the perplexity that a bundle has on them."""
