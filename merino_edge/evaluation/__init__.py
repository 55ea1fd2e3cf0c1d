"""What a model knows: tasks of lm-evaluation-harness, and perplexity on a text."""
