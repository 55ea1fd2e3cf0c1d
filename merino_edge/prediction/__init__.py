"""What an inference costs on a board: latency, memory, files, energy."""
