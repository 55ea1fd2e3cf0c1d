"""Whether TensorRT's parser takes a graph, judged without TensorRT. Builds no engine: the board does that."""
