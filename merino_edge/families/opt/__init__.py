"""OPT (Zhang et al., arXiv 2205.01068), the baseline."""
