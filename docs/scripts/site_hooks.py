"""Hooks of mkdocs: the records of bench/results, which lie outside of the pages' folder, are part of the site; in a
cell of a table a figure stays on one line with its unit; the color toggle works without highlight.js; and the search
finds how-to pages first, and no decisions."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
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


def on_post_page(output: str, **_: object) -> str:
    """The theme's script enables and disables two style sheets of highlight.js, which this site does not load."""
    return output.replace("</head>", '<style id="hljs-light"></style><style id="hljs-dark"></style></head>', 1)


# Pages that are looked up, rather than read to do something, rank lower in the search.
REFERENCE = ("reference/", "formats", "outputs", "glossary", "release", "paths", "trust", "evidence", "limits")
FACTOR = 0.2


@event_priority(-200)  # after the search has written its files
def on_post_build(config: Any) -> None:
    folder = Path(config.site_dir) / "search"
    index = json.loads((folder / "search_index.json").read_text(encoding="utf-8"))
    index["docs"] = [page for page in index["docs"] if not page["location"].startswith("decisions/")]
    for page in index["docs"]:
        page["boost"] = FACTOR if page["location"].startswith(REFERENCE) else 1
    (folder / "search_index.json").write_text(json.dumps(index), encoding="utf-8")
    worker = folder / "worker.js"
    script = worker.read_text(encoding="utf-8").replace("this.add(doc)", "this.add(doc, {boost: doc.boost})")
    worker.write_text(script, encoding="utf-8")
