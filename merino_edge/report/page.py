"""A summary as one HTML file that loads nothing (style, script and charts are inside, a policy forbids requests), or
as Markdown for a pull request: headline, ratios, representative rows, machines."""

import base64
import hashlib
from collections.abc import Iterable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from merino_edge import __version__
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE, percent
from merino_edge.report import tables as words
from merino_edge.report.knowledge import scores_table
from merino_edge.report.page_charts import charts_of
from merino_edge.report.series import engines_of
from merino_edge.report.summary import Summary
from merino_edge.report.svg import as_markup, drawing, marker, shape_of
from merino_edge.report.tables import DataTable, environment_rows, equal_table, records_table, shipped_table
from merino_runtime.io.visible import harmless, visible


def page(summary: Summary) -> str:
    """The template's autoescape escapes text from records; in charts their element tree does. No record's name changes
    the direction of the text behind it."""
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
        scores=scores_table(summary.evaluations), records=records_table(summary),
        environments=[(one, environment_rows(one)) for one in summary.places],
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
    shapes = []
    for shape, precisions in names.items():
        svg = drawing(f"{shape}-marker", ", ".join(precisions), "marker", 14, 14)
        marker(svg, 7, 7, precisions[0], "mark plain", 4)
        shapes.append((", ".join(precisions), Markup(as_markup(svg))))
    return shapes


SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~"})
OMITTED = ("load ms", "p95 ms", "p99 ms", "machine", "parameters M")  # columns that only the page has


def markdown(summary: Summary) -> str:
    parts = [f"### {text(words.headline(summary))}", text(words.headline_details(summary))]
    if summary.headline:
        parts.append(f"The paper: {text(words.paper_words())}")
    parts += [as_table(table) for table in (equal_table(summary, short=True), shipped_table(summary)) if table.rows]
    parts += [_predicted(summary)] if summary.predictions else []
    parts += [f"{text(words.unpredicted_words(summary))}."] if summary.unpredicted else []
    parts += [as_table(scores_table(summary.evaluations))] if summary.evaluations else []
    parts += [as_table(records_table(summary, short=True))] if summary.records else []
    parts += [f"- {text(row.bundle)} {row.test} failed: {text(row.failure or '')}" for row in summary.failed]
    for place in summary.places:
        facts = "; ".join(f"{name}: {value}" for name, value in environment_rows(place) if name != "Command")
        parts.append(f"Measured on {text(place.board)}. {text(facts)}.")
    return "\n\n".join(parts) + "\n"


def as_table(table: DataTable) -> str:
    kept = [index for index, (title, _) in enumerate(table.columns) if title not in OMITTED]
    titles = [table.columns[index][0] for index in kept]
    rule = ["--:" if table.columns[index][1] else ":--" for index in kept]
    lines = [_line(titles), _line(rule)]
    lines += [_line(text(row[index].text) for index in kept) for row in table.rows]
    return f"{text(table.caption)}\n\n" + "\n".join(lines)


def text(raw: str) -> str:
    """On one line, with the characters that Markdown or HTML would interpret escaped."""
    return visible(" ".join(raw.split()), None).translate(SPECIAL)


def _predicted(summary: Summary) -> str:
    interval = f"{percent(DEFAULT_CONFIDENCE)} interval"
    titles = ["model", "what", "test", "predicted", "measured", interval, "measured on"]
    lines = [_line(titles), _line([*[":--"] * 3, "--:", "--:", ":--", ":--"])]
    for one in summary.predictions:
        values = (f"{value:,.1f} {one.unit}" for value in (one.predicted, one.measured))
        cells = (text(one.series.label), one.what, one.test, *values, one.verdict or "-", text(one.series.board))
        lines.append(_line(cells))
    kinds = ", ".join(sorted({one.provenance for one in summary.predictions}))
    return f"Predicted for {text(summary.predicted_for)} from {kinds} coefficients.\n\n" + "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
