"""A packed file on the board: reading, checking and installing NAME.merino. Standard library only, Python 3.6."""
