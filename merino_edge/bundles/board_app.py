"""merino.pyz: the board side as one zip application, the same bytes for the same sources."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import merino_bench
import merino_runtime
from merino_edge.storage.atomic import write_text
from merino_runtime.bundle import load_bundle

APP_FILE = "merino.pyz"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold
MAIN = "import sys\nfrom merino_bench.__main__ import main\nsys.exit(main())\n"


def write_board_app(path: Path) -> None:
    """Needs Python 3.6 or later, numpy, tokenizers and the backend on the board; runs as `python3 merino.pyz`."""
    with open(path, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(entry("__main__.py"), MAIN)
            for package in (merino_runtime, merino_bench):
                assert package.__file__
                root = Path(package.__file__).parent
                for source in sorted(root.rglob("*.py")):
                    archive.writestr(entry(f"{root.name}/{source.relative_to(root).as_posix()}"), source.read_bytes())
    path.chmod(0o755)


def entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def renew_board_app(folder: Path) -> None:
    """Replace a bundle's merino.pyz by today's, and its entry in bundle.json."""
    load_bundle(str(folder))
    path = folder / "bundle.json"
    description = json.loads(path.read_text())
    write_board_app(folder / APP_FILE)
    content = (folder / APP_FILE).read_bytes()
    for file in description["files"]:
        if file["path"] == APP_FILE:
            file.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    write_text(path, json.dumps(description, indent=1) + "\n")


if __name__ == "__main__":
    renew_board_app(Path(sys.argv[1]))
