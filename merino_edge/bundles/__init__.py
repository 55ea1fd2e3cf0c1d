"""A bundle's folder: its description, its files and their hashes, the board's application. No torch, no onnx."""
