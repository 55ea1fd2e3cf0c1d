"""The benchmark: measures bundles in fresh processes, on the board and on the workstation alike (Python 3.6)."""
