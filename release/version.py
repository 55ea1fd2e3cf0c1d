"""Sets the version in each file that has it: `python release/version.py 0.2.0`. docs/release.md"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    ("runtime/merino_runtime/__init__.py", r'(?m)(?<=^__version__ = ")[^"]+'),
    ("setup.cfg", r"(?m)(?<=^version = ).+"),
    ("setup.cfg", r"(?m)(?<=^    merino-runtime==).+"),
    ("container/home-assistant/config.yaml", r"(?m)(?<=^version: ).+"),
)


def versions(root: Path) -> list[str]:
    """That of each place."""
    return [version for name, pattern in PLACES for version in re.findall(pattern, (root / name).read_text("utf-8"))]


def set_version(root: Path, version: str) -> None:
    for name, pattern in PLACES:
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(re.sub(pattern, version, text), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+(\.\d+)+((a|b|rc)\d+)?", sys.argv[1]):
        sys.exit("usage: python release/version.py VERSION, such as 0.2.0 or 0.2.0rc1")
    set_version(ROOT, sys.argv[1])
