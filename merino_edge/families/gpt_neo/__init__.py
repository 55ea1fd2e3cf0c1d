"""GPT-Neo (EleutherAI 2021), as TinyStories (arXiv 2305.07759) has it."""
