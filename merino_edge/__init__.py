"""The workstation side: design, train and export small decoders for edge boards."""
import os

# Sets the environment before numpy and onnxruntime are imported.
from merino_runtime import __version__ as __version__

# No usage reports of hub clients and other libraries. A value of the user's stands.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
