"""Hooks of mkdocs: the records of bench/results, which lie outside of the pages' folder, are part of the site, and in a
cell of a table a figure stays on one line with its unit."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


def on_files(files: Any, config: Any) -> Any:
    for path in sorted(RESULTS.iterdir()):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+bench/results/", f"]({up}results/", markdown)


UNIT = re.compile(r"(?<=\d) (?=(%|ms|s|MB|GB|M)</td>)")


def on_page_content(html: str, **_: object) -> str:
    return UNIT.sub("&nbsp;", html)
