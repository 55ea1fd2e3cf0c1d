"""Makes the pages and pictures that follow from code and records: `python docs/scripts/make.py`.

A test holds them equal to it."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "runtime")]

import boards  # noqa: E402
import openapi  # noqa: E402
import pictures  # noqa: E402
import reference  # noqa: E402
import terminal  # noqa: E402

from merino_edge.storage.atomic import write_text  # noqa: E402

DOCS = ROOT / "docs"
RESULTS = DOCS.parent / "bench" / "results"
TITLES = ("record", "claim", "date", "commit", "machine", "command")
# A file of `merino-edge bench`, which `report` and `compare` read, has no room for a claim.
DEMO, DEMO_CLAIM = "demo-x86-2cores.json", "The benchmark of `make demo`: a design for a Raspberry Pi 4 beside OPT-350M"
HEAD = """# Records

Each figure in README and docs links to the record that holds it. A record is a summary of at most 200 lines: medians,
intervals and counts. A file holds one record, or several of one subject.
`bench/experiments/write_record.py` adds the claim, the commits that measured (the oldest first),
the date, the machine and the command. If a script is gone, its commit still has it. This table is made by
`python docs/scripts/make.py`.
"""


def records_of(name: str) -> dict[str, dict[str, Any]]:
    """Return claim, commits, date, machine and command of each record in a file, by the record's name: of the only one,
    or of several that one page rests on."""
    record = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    if name != DEMO:
        return dict(record["records"]) if "records" in record else {name.removesuffix(".json"): record}
    cast = json.loads((DOCS / "pictures" / "demo.cast").read_text(encoding="utf-8").partition("\n")[0])
    facts = record[0]["environment"]
    machine = f"{facts['arch']}, {facts['board']}, {facts['cpus']} cores"
    return {name.removesuffix(".json"): {
        "claim": DEMO_CLAIM, "commits": [cast["commit"]], "date": record[0]["date"][:10], "machine": machine,
        "command": "make demo",
    }}  # fmt: skip


def records() -> str:
    """The table of all records in bench/results/README.md, from the records' own fields."""
    rows = [TITLES, ["---"] * len(TITLES)]
    for path in sorted(RESULTS.glob("*.json")):
        for name, facts in records_of(path.name).items():
            commits = ", ".join(facts["commits"][:1] + facts["commits"][1:][-1:])
            command = "<br>".join(f"`{part}`" for part in facts["command"].replace("|", "or").split("; "))
            rows.append([f"[{name}]({path.name})", facts["claim"], facts["date"], commits, facts["machine"], command])
    return HEAD + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


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
    "../bench/results/README.md": lambda _: records(),
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
