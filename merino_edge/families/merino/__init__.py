"""The designed family: blocks of growing width (MeRino, arXiv 2403.07921)."""
