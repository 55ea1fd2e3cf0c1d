"""House commands: a sentence and a house in, calls of the house's tools out. Needs numpy and a backend only."""
