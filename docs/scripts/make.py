"""Makes the pages and pictures that follow from code and records: `python docs/scripts/make.py`.

A test holds them equal to it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "runtime")]

import boards  # noqa: E402
import openapi  # noqa: E402
import pictures  # noqa: E402
import reference  # noqa: E402
import terminal  # noqa: E402

import results  # noqa: E402
from merino_edge.storage.atomic import write_text  # noqa: E402

DOCS = ROOT / "docs"


def between_marks(path: Path, name: str, text: str) -> str:
    """The file with `text` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, rest = path.read_text(encoding="utf-8").split(begin)
    return f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}"


MADE = {
    "pictures/demo.svg": lambda path: terminal.text(path.with_suffix(".cast")),
    "pictures/shapes.svg": lambda _: pictures.shapes(),
    "pictures/predictions.svg": lambda _: pictures.predictions(),
    "pictures/published.svg": lambda _: pictures.published(),
    "pictures/behind-cache.svg": lambda _: pictures.behind_cache(),
    "reference/command-line.md": lambda _: reference.workstation(),
    "reference/board-commands.md": lambda _: reference.on_the_board(),
    "reference/python-api.md": lambda _: reference.python_api(),
    "reference/openapi.json": lambda _: openapi.text(),
    "../bench/results/README.md": lambda _: results.text(),
    "boards/index.md": lambda path: between_marks(path, "boards", boards.text()),
}


def main() -> None:
    for name, made in MADE.items():
        path = (DOCS / name).resolve()
        path.parent.mkdir(exist_ok=True)
        write_text(path, made(path))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
