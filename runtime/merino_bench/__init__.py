"""The benchmark: measures bundles in fresh processes, on board and workstation alike (Python 3.6)."""
import merino_runtime as merino_runtime  # sets the environment before numpy and onnxruntime are imported
