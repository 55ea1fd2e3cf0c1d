"""Whether a graph is one that TensorRT's parser takes, told without TensorRT. Builds no engine: the board does that."""
