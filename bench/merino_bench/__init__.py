"""The benchmark: measures bundles in fresh processes, on board and workstation alike (Python 3.6)."""
