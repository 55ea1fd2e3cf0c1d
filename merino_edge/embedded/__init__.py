"""The trained model that comes with the package; the README beside this file documents how it was made."""

from pathlib import Path

EMBEDDED = "embedded"  # its name on the command line, wherever a bundle or a source is taken
FOLDER = Path(__file__).parent / "bundle"
