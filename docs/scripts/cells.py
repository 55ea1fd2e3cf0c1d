"""A hook of mkdocs: in a cell of a table a figure stays on one line with its unit."""

import re

UNIT = re.compile(r"(?<=\d) (?=(%|ms|s|MB|GB|M)</td>)")


def on_page_content(html: str, **_: object) -> str:
    return UNIT.sub("&nbsp;", html)
