"""The workstation side: design, train and export small decoders for edge boards."""
import os

import merino_runtime as merino_runtime  # sets the environment before numpy and onnxruntime are imported

__version__ = "0.1.0"

# No usage reports of hub clients and other libraries. A value of the user's stands.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
