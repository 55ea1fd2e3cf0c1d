"""The paper's own search (MeRino, arXiv 2403.07921): its space of uneven blocks, its score and its budgets."""
