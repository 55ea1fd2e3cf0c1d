"""Files, streams, locks, JSON, and the facts of the machine. Standard library only; knows nothing of bundles."""
