"""The decoder of 66 M parameters that several experiments measure: 14 layers of 640, random weights."""

import json
import subprocess
import sys
from pathlib import Path

BLOCK = {"width": 640, "ffn_ratio": 1, "depth": 14, "shared": False}
GEOMETRY = {"blocks": [BLOCK], "vocab": 50257, "head_size": 64, "context": 512}


def export_bundle(folder: Path, precision: str) -> Path:
    """The bundle `folder`/`precision`, exported in a process of its own."""
    geometry = folder / "geometry.json"
    geometry.write_text(json.dumps(GEOMETRY))
    code = "from merino_edge.cli.app import main; main()"
    bundle = folder / precision
    command = [sys.executable, "-c", code, "export", geometry, "--precision", precision, "-o", bundle]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return bundle
