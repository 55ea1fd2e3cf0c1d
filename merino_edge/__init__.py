"""The workstation side: design, train and export small decoders for edge boards."""
__version__ = "0.1.0"
