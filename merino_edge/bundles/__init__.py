"""A bundle as files: its description, its hashes, the board's application. No torch."""
