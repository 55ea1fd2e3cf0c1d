"""GPT-2 (Radford et al. 2019) and Cerebras-GPT (arXiv 2304.03208), which is the same graph."""
