"""A summary as one HTML file without script that loads nothing (a policy forbids both), or
as Markdown for a pull request: headline, ratios, representative rows, machines."""

from collections.abc import Iterable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from merino_edge import __version__
from merino_edge.report import tables as words
from merino_edge.report.charts import charts_of
from merino_edge.report.summary import Summary
from merino_runtime.io.streams import harmless, visible


def page(summary: Summary) -> str:
    """Render the page. The template's autoescape escapes texts of records; in charts matplotlib does. No record's name
    changes the direction of the text behind it."""
    templates = Environment(
        loader=PackageLoader("merino_edge.report", "template"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return harmless(templates.get_template("page.html").render(
        summary=summary, words=words, version=__version__,
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        charts=[(chart, Markup(chart.svg)) for chart in charts_of(summary)],
        ratios=words.ratio_tables(summary), predicted=words.predicted_table(summary),
        scores=words.scores_table(summary.evaluations), records=words.records_table(summary),
        environments=[(place, words.environment_rows(place)) for place in summary.places],
    ))  # fmt: skip


SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~"})
OMITTED = ("load ms", "p99", "machine", "params M", "bundle MB")  # columns that only the page has


def markdown(summary: Summary) -> str:
    parts = [f"### {text(words.headline(summary))}", text(words.headline_details(summary))]
    if summary.headline:
        parts.append(f"The paper: {text(words.paper_words())}")
    parts += map(as_table, words.ratio_tables(summary, short=True))
    parts += [as_table(words.predicted_table(summary))] if summary.predictions else []
    parts += [f"{text(words.unpredicted_words(summary))}."] if summary.unpredicted else []
    parts += [as_table(words.scores_table(summary.evaluations))] if summary.evaluations else []
    parts += [as_table(words.records_table(summary, short=True))] if summary.records else []
    parts += [f"- {text(row.bundle)} {row.test} failed: {text(row.failure or '')}" for row in summary.failed]
    for place in summary.places:
        facts = "; ".join(f"{name}: {value}" for name, value in words.environment_rows(place) if name != "Command")
        parts.append(f"Measured on {text(place.board)}. {text(facts)}.")
    return "\n\n".join(parts) + "\n"


def as_table(table: words.DataTable) -> str:
    kept = [index for index, (title, _) in enumerate(table.columns) if title not in OMITTED]
    titles = [table.columns[index][0] for index in kept]
    rule = ["--:" if table.columns[index][1] else ":--" for index in kept]
    lines = [_line(titles), _line(rule)]
    lines += [_line(text(row[index]) for index in kept) for row in table.rows]
    return f"{text(table.caption)}\n\n" + "\n".join(lines)


def text(raw: str) -> str:
    """Return text on one line, with the characters of Markdown and HTML escaped."""
    return visible(" ".join(raw.split()), None).translate(SPECIAL)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
