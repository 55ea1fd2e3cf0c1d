"""The pictures of docs/evidence.md and docs/predictions.md from the records: losses beside scores, predictions beside
measurements and published speeds, decoding behind a cache.

`python docs/scripts/pictures.py` draws report.png, the top of the demo's report in Chromium. By hand, after the report
changed: the pixels depend on the browser's version and fonts, so no test compares them."""

import json
import shutil
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from merino_runtime.io.outputs import write_output

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
COLORS = {"fp32": "#1664b5", "int8": "#c2410c", "int4": "#15803d"}
# Text as text, and ids that are the same each time.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "merino", "font.size": 9, "axes.edgecolor": "#bbb"}


def read(record: str) -> Any:
    return json.loads((RESULTS / record).read_text(encoding="utf-8"))


def drawing(figure: Figure, title: str) -> str:
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Title": title, "Date": None})
    return out.getvalue()


TABLES = 2 * 50304  # rows of the embedding and the head of the published decoders
SCORES = {"merino": "MeRino's score", "number of weights": "number of weights", "measured": "measured score"}


@matplotlib.rc_context(STYLE)
def shapes() -> str:
    """A point per published decoder: its loss against each of three scores."""
    record = read("shapes.json")
    ranks, rows = record["summary"]["all"], record["rows"]
    figure = Figure(figsize=(9.5, 3.5), layout="constrained")
    for axes, (score, title) in zip(figure.subplots(1, len(SCORES), sharey=True), SCORES.items(), strict=True):
        best = max(row[score] for row in rows)
        for name, color, near in (("about 100 M weights", "#c2410c", True), ("other sizes", "#1664b5", False)):
            points = [
                (max(row[score], best / 1e3), row["loss"]) for row in rows
                if (90e6 <= row["weights"] + TABLES * row["width"] <= 120e6) == near
            ]  # fmt: skip
            axes.scatter(*zip(*points, strict=True), s=18, color=color, linewidths=0, label=name)
        axes.set(xscale="log", xlabel=f"{title} (Spearman {ranks[score]['spearman']:.3f})")
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.axes[0].set(ylabel="loss after 100 billion tokens")
    return drawing(figure, "Loss against three scores")


def compare_on_logs(axes: Axes, ends: tuple[float, float]) -> None:
    """Give both axes the same logarithmic scale, and draw the line on which they are equal."""
    axes.plot(ends, ends, color="#888", linewidth=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


@matplotlib.rc_context(STYLE)
def predictions() -> str:
    """A point per design and format: on the line where the prediction is the measurement."""
    rows = read("predictions-x86-2cores.json")["rows"]
    panels = {"decode": "decode, ms", "prefill_256": "prefill of 256 tokens, ms", "memory": "peak memory, MB"}
    figure = Figure(figsize=(9.5, 3.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        of_key = [(row["precision"], *reversed(row[key])) for row in rows]
        for name, color in COLORS.items():
            measured, predicted = zip(*[pair for precision, *pair in of_key if precision == name], strict=True)
            axes.scatter(measured, predicted, s=18, color=color, alpha=0.6, linewidths=0, label=name)
        ends = min(min(pair) for _, *pair in of_key) / 1.15, max(max(pair) for _, *pair in of_key) * 1.15
        compare_on_logs(axes, ends)
        axes.set(xlabel=f"measured {title}", ylabel="predicted")
    return drawing(figure, "Predicted against measured")


BOARDS = {
    "jetson-nano": "#15803d", "jetson-orin-nano": "#65a30d", "raspberry-pi-4": "#1664b5", "raspberry-pi-5": "#c2410c",
    "raspberry-pi-zero-2w": "#7c3aed",
}  # fmt: skip


@matplotlib.rc_context(STYLE)
def published() -> str:
    """A point per published speed: on the line where the profile, as it is, predicts it; a cross for a GPU."""
    rows = read("published.json")["rows"]
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    for axes, phase in zip(figure.subplots(1, 2), ("decode", "prefill"), strict=True):
        for board, color in BOARDS.items():
            for marker, on_gpu in (("o", False), ("x", True)):
                points = [
                    (row[6], row[7]) for row in rows
                    if (row[0], row[5], row[4] == "gpu") == (board, phase, on_gpu)
                ]  # fmt: skip
                if points:
                    label = board + (" (GPU)" if on_gpu else "")
                    axes.scatter(*zip(*points, strict=True), s=20, marker=marker, color=color, alpha=0.7, label=label)
        speeds = [speed for row in rows if row[5] == phase for speed in (row[6], row[7])]
        ends = min(speeds) / 1.2, max(speeds) * 1.2
        compare_on_logs(axes, ends)
        axes.fill_between(ends, [end / 1.25 for end in ends], [end * 1.25 for end in ends], color="#eee", zorder=0)
        axes.set(xlabel=f"published {phase}, tokens/s", ylabel="predicted")
    return drawing(figure, "Predicted against published speeds")


DEPTHS = (64, 448, 1984)


@matplotlib.rc_context(STYLE)
def behind_cache() -> str:
    """Milliseconds per token of 66 M parameters in int8 against the tokens cached."""
    rows = read("native-66m-x86-2cores.json")["records"]["native-depth-x86-2cores"]["rows"]
    own = {kv: [row for row in rows if (row["precision"], row["kv"]) == ("int8", kv)] for kv in ("int8", "float32")}
    lines = {
        "this project, int8 cache": ("#c2410c", [row["tok_s"] for row in own["int8"]]),
        "this project, float32 cache": ("#f59e0b", [row["tok_s"] for row in own["float32"]]),
        "llama.cpp, the faster of its caches": ("#1664b5", [row["other_tok_s"] for row in own["float32"]]),
    }
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    axes = figure.subplots()
    for name, (color, speeds) in lines.items():
        axes.plot(DEPTHS, [1000 / speed for speed in speeds], "o-", color=color, label=name)
    axes.set(xlim=(0, 2048), ylim=(0, None), xticks=DEPTHS, xlabel="tokens cached", ylabel="ms per token")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return drawing(figure, "Decode latency behind a long cache")


DOCS = Path(__file__).resolve().parents[1]
REPORT, PICTURE = DOCS / "report-x86-2cores.html", DOCS / "pictures" / "report.png"
SIZE = {"width": 1280, "height": 1180}


def top_of(report: Path) -> bytes:
    """A PNG of the page's top."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(report.as_uri())
        picture = page.screenshot()
        browser.close()
    return picture


if __name__ == "__main__":
    if not shutil.which("chromium"):
        sys.exit("there is no chromium here; on Debian: apt-get install chromium")
    write_output(str(PICTURE), top_of(REPORT))
