"""A summary as one HTML file that loads nothing: style, script and charts are inside, a policy forbids requests."""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from merino_edge import __version__
from merino_edge.report import words
from merino_edge.report.page_charts import charts_of
from merino_edge.report.series import engines_of
from merino_edge.report.summary import Summary
from merino_edge.report.svg import as_markup, drawing, marker, shape_of
from merino_edge.report.tables import environment_rows, equal_table, records_table, shipped_table
from merino_runtime.io.visible import harmless


def page(summary: Summary) -> str:
    """The template's autoescape escapes text from records; in charts their element tree does. No
    record's name changes the direction of what stands behind it."""
    templates = Environment(
        loader=PackageLoader("merino_edge.report", "template"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style, script = (_inside(templates, name) for name in ("style.css", "sort.js"))
    return harmless(templates.get_template("page.html").render(
        summary=summary, words=words, version=__version__, style=Markup(style), script=Markup(script),
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:",
        engines=engines_of(summary.series), shapes=_shapes(summary),
        charts=[(one, [Markup(each) for each in one.drawings]) for one in charts_of(summary)],
        ratios=[table for table in (equal_table(summary), shipped_table(summary)) if table.rows],
        records=records_table(summary), environments=[(one, environment_rows(one)) for one in summary.places],
    ))  # fmt: skip


def _inside(templates: Environment, name: str) -> str:
    """The text of a style sheet or a script, not rendered as a template."""
    assert templates.loader is not None
    text, _, _ = templates.loader.get_source(templates, name)
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shapes(summary: Summary) -> list[tuple[str, Markup]]:
    """(formats, markup of the marker) of each shape in use, for the key."""
    names: dict[str, list[str]] = {}
    for precision in dict.fromkeys(one.precision for one in summary.series):
        names.setdefault(shape_of(precision), []).append(precision)
    found = []
    for shape, precisions in names.items():
        svg = drawing(f"{shape}-marker", ", ".join(precisions), "marker", 14, 14)
        marker(svg, 7, 7, precisions[0], "mark plain", 4)
        found.append((", ".join(precisions), Markup(as_markup(svg))))
    return found
