"""The trained model that comes with the package; how it was made is in the README beside this file."""

from pathlib import Path

EMBEDDED = "embedded"  # the name that stands for it wherever a bundle is taken
FOLDER = Path(__file__).parent / "bundle"


def bundle_path(name: str) -> str:
    """The folder of a bundle named on the command line."""
    return str(FOLDER) if name == EMBEDDED else name
