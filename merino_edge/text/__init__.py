"""Text: files of it, tokenizers, rows of token ids, and the log-likelihoods that a bundle gives them."""
