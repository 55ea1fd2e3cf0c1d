"""The ONNX graph of a decoder in two dialects, `fused` and `portable`."""
