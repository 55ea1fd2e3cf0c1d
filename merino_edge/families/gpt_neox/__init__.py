"""GPT-NeoX (arXiv 2204.06745), as Pythia (arXiv 2304.01373) has it."""
