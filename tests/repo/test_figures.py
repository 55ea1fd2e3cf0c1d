"""Figures of README and docs: those of the measured tables are worked out again from the record that their section
names, and each paragraph that claims a measurement names its record or its commit."""

import json
import re
from functools import cache
from pathlib import Path
from statistics import mean, median

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *DOCS.rglob("*.md")]
FIGURE = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
NUMBER = re.compile(r"(?<![\w.#-])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)")


def sections(page):
    return re.split(r"^(?=##+ )", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)


def section(page, title):
    (result,) = [each for each in sections(page) if each.lstrip("# ").startswith(title)]
    return result


def rows(text):
    """The cells of each row of a section's tables, without their titles."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    titles = {place - 1 for place, line in enumerate(lines) if set(line) <= set("- |")}
    left = [line for place, line in enumerate(lines) if not {place, place - 1} & titles]
    return [[cell.strip() for cell in line.split("|")] for line in left]


def written(value, digits):
    return f"{value:,.{digits}f}"


def decimals(text):
    return len(text.partition(".")[2])


@cache
def content(record):
    return json.loads((RESULTS / record).read_text(encoding="utf-8"))


@cache
def processes(record):
    """{(step or prefill, section, test, engine): {round: ms}}: the median of the means of a process's repetitions. A
    round in which every attempt was disturbed counts as its last one."""
    results = {}
    for run in sorted(content(record)["runs"], key=lambda run: not run.get("flags")):
        for kind in ("step_ms", "prefill_ms"):
            samples = [mean(each) if isinstance(each, list) else each for each in run.get(kind) or [] if each]
            if samples:
                engine = results.setdefault((kind, run["section"], run["test"], run["name"]), {})
                engine[run["round"]] = median(samples)
    return results


def middle(record, *key):
    return median(processes(record)[key].values())


# Rows of speed.md's first table: the engines of each figure, decode then prefill.
FORMATS = ("fp32", "int8", "int4")
PAIRS = {
    "OPT-350M in int8, this project / CTranslate2": [("opt", "ours opt-350m int8", "ctranslate2 opt-350m int8")],
    "OPT-350M in fp32, this project / transformers": [("opt", "ours opt-350m fp32", "transformers opt-350m fp32")],
    "a design of 58.7 M / OPT-350M": [("64m", f"ours 64m {one}", f"ours opt-350m {one}") for one in FORMATS],
    "the same layers with a vocabulary of 16,384":
        [("64m", f"ours 64m-v16384 {one}", f"ours opt-350m {one}") for one in FORMATS],
    "designs for a decode budget":
        [("timed", f"ours timed-{one} {one}", f"ours opt-350m {one}") for one in FORMATS],
    "as shipped": [("64m", "ours 64m int4", "transformers opt-350m fp32")],
}  # fmt: skip


def test_the_first_table_of_speed_is_the_record():
    result = rows(sections("docs/speed.md")[0])
    assert len(result) == len(PAIRS)
    for label, *cells in result:
        (pairs,) = [each for start, each in PAIRS.items() if label.startswith(start)]
        for kind, cell in zip(("step_ms", "prefill_ms"), cells, strict=True):
            figures = NUMBER.findall(cell)
            ratios = [middle("bars-x86-2cores.json", kind, part, "tg64", other)
                      / middle("bars-x86-2cores.json", kind, part, "tg64", own) for part, own, other in pairs]
            assert not figures or figures == [
                written(each, decimals(figures[0])) for each in ratios
            ], f"{label}, {kind}"


LABELS = {
    "tg32 @ d64": "decode behind 64", "tg64 @ d64": "decode behind 64", "tg32 @ d448": "behind 448",
    "tg32 @ d1984": "behind 1,984", "pp512": "prefill of 512", "pp64": "prefill of 64",
}  # fmt: skip


BESIDE, BEHIND = "Against a llama.cpp that is built for the machine", "Behind a long cache"


@pytest.mark.parametrize(
    ("name", "title", "columns"),
    [("real-model-speed", BESIDE, 8), ("native-66m", BESIDE, 7), ("native-depth", BEHIND, 7)],
)
def test_a_table_beside_a_native_llama_cpp_is_its_record(name, title, columns):
    record = [row for each in content(f"{name}-x86-2cores.json")["sections"].values() for row in each]
    expected = []
    for row in record:
        fast, sides = row["fast"], (row["fast"], row["slow"])
        cells = [
            fast["precision"], fast["kv"] or "float32", LABELS[row["test"]],
            *(f"{side['tok_s']:.1f}" for side in sides), f"{row['ratio']:.2f}",
            "{:.2f} to {:.2f}".format(*row["interval"]), " / ".join(f"{side['peak_rss_mb']:.0f}" for side in sides),
        ]  # fmt: skip
        expected.append(cells[:columns])
    message = by_columns("docs/speed.md", title, columns)
    assert sorted(message) == sorted(expected)


def by_columns(page, title, columns):
    return [cells for cells in rows(section(page, title)) if len(cells) == columns]


def test_the_table_of_what_formats_know_is_the_record():
    message = by_columns("docs/benchmark.md", "What the formats know", 6)
    values = {(row["task"], row["name"]): known(row) for row in content("knowledge-smollm2.json")["rows"]}
    tasks, names = {task for task, _ in values}, ("fp32", "int8", "int4", "int8-kv8", "llama.cpp")
    text = ["wikitext, bits per byte", *(written(values["wikitext", name], 3) for name in names)]
    scored = tasks - {"wikitext"}
    expected = [[task, *(written(100 * values[task, name], 0) for name in names)] for task in scored]
    means = [written(100 * mean(values[task, name] for task in scored), 1) for name in names]
    assert sorted(message) == sorted([*expected, text, ["mean of thirteen", *means]]) and len(scored) == 13


def known(row):
    metrics = row["metrics"]
    return next(metrics[name]["value"] for name in ("acc_norm", "acc", "bits_per_byte") if name in metrics)


def test_the_table_of_divergences_is_the_record():
    message = {(re.sub(r"\W", "", label.lower()), form): cells
               for label, form, *cells in by_columns("docs/benchmark.md", "What the formats know", 7)}  # fmt: skip
    assert message == {
        (re.sub(r"\W|gguf$", "", row["file"].lower()), row["format"]): [
            written(row["mb"], 0), written(row["kl_mean"], 4), written(row["kl_p99"], 3),
            f"{100 * row['top1']:.1f} %", f"{row['kept']} of {row['answers']}",
        ]
        for row in content("divergences.json")["rows"]
    }  # fmt: skip


def test_the_table_of_the_house_is_the_record():
    record = content("house-x86-2cores.json")
    others = ("int8, the model alone", "hassil, Home Assistant's sentences")
    columns = [*(record["formats"][name] for name in ("int8", "fp32", "int4")),
               *(record["formats_of_others"][name] for name in others)]  # fmt: skip

    def row(name, kind=None, write=lambda good, most: share(good / most)):
        """(how many, the cell of each column, empty where it has no such set); of all kinds where none is named."""
        sets = [one.get(name, {}) for one in columns]
        kinds = [[one[kind]] if kind else one.values() for one in sets]
        counts = [[sum(each) for each in zip(*one, strict=True)] for one in kinds]
        return counts[0][1], [write(*each) if each else "" for each in counts]

    def share(part):
        return f"{100 * part:.1f} %" if part else "0 %"

    def acted_wrongly(*names):
        effects = [record["wrong_with_an_effect"][column] for column in ("int8", "fp32", "int4", *others)]
        return sum(row(name)[0] for name in names), [str(sum(one[name] for name in names)) for one in effects]

    written = [row(name, kind) for name in ("written", "written, then seen")
               for kind in ("command", "missing", "no command")]  # fmt: skip
    expected = [
        row("generated"), row("generated, new wordings"), row("utterances", "asks"),
        row("utterances", "asks for nothing", lambda good, _: str(good)),
        row("negatives", write=lambda good, most: share(1 - good / most)), *written,
        acted_wrongly("generated", "generated, new wordings"), acted_wrongly("written", "written, then seen"),
    ]  # fmt: skip
    message = by_columns("docs/house.md", "A model for one job", 7)
    assert [(int(label.split()[0]), cells[:5]) for label, *cells in message] == expected


def printed_by_the_demo():
    """The numbers that the recorded run of README's picture printed."""
    events = (DOCS / "pictures" / "demo.cast").read_text(encoding="utf-8").splitlines()[1:]
    return set(FIGURE.findall("".join(json.loads(event)[2] for event in events)))


def test_the_demos_figures_are_those_of_its_recorded_run_and_its_record():
    """Its commit is the record's, and what it measured is the record."""
    head, *_ = (DOCS / "pictures" / "demo.cast").read_text(encoding="utf-8").splitlines()
    record = content("demo-x86-2cores.json")
    decode = [row for row in record if row["test"].startswith("tg")]
    (own,) = [row for row in decode if row["bundle"] == "pi4-design"]
    peaks = {}
    for row in record:
        peaks[row["bundle"]] = max(row["peak_rss_mb"], peaks.get(row["bundle"], 0))
    measured = {
        *(f"{row['tok_s']:.1f}" for row in decode), *(f"{each:,.0f}" for each in peaks.values()),
        *(f"{each:.2f}" for each in (own["ratio_to_baseline"], *own["ratio_interval"])),
    }  # fmt: skip
    assert measured <= printed_by_the_demo()
    commit = json.loads(head)["commit"]
    readme, start = sections("README.md")[0], section("docs/start.md", "Two commands")
    for page, text in (("README.md", readme), ("docs/start.md", start)):
        assert f"measured at {commit}" in text.replace("\n", " "), page
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        block = "".join(inner for language, inner in blocks if not language)
        item = "".join(re.findall(r"^\d\. \*\*Benchmark.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE))
        figures = {each for each in FIGURE.findall(block + item) if decimals(each) or "," in each}
        assert figures <= printed_by_the_demo(), page
        assert {f"{row['tok_s']:.1f}" for row in decode} <= figures, page


# A figure of speed, time, memory or loss, and a word that says it was measured, in one sentence.
UNIT = "ms|MB|GB|tok/s|tokens per second|tokens a second|s|minutes?"
CLAIM = re.compile(rf"\d (?:{UNIT}) |\d ?%|\dx\b|times as (?:fast|long)")
MEASURED = re.compile(r"\bmeasured|\btook\b|\bpeak was|\bx86\b|\bin one run")
NO_CLAIM = re.compile(
    "`measured`|measured score|predict|publish|assum|budget|is measured|are measured|measures|is not|none of|aim|until",
    re.IGNORECASE,
)
SOURCE = re.compile(r"bench/results/[\w.-]+\.json|(?:at|by|since|and|in) [0-9a-f]{7}\b|\([0-9a-f]{7}\)")


def claims(page):
    """(paragraph or item, whether its section has named a source up to it) of each that claims a measurement."""
    for part in sections(page):
        text = re.sub(r"^```.*?^```", "", part, flags=re.DOTALL | re.MULTILINE)
        named = False
        for paragraph in re.split(r"\n\s*\n|\n(?=[*-] )", text):
            line = " ".join(paragraph.split())
            named = named or bool(SOURCE.search(line))
            message = [one for one in re.split(r"(?<=[.;]) ", line) if CLAIM.search(f"{one} ") and MEASURED.search(one)]
            if [one for one in message if not NO_CLAIM.search(one)] and not line.startswith("|"):
                yield line, named


CLAIMS = {page: list(claims(page)) for page in sorted(path.relative_to(ROOT).as_posix() for path in PAGES)}


def test_measurements_are_claimed():
    assert sum(map(len, CLAIMS.values())) >= 40


@pytest.mark.parametrize("page", [page for page, result in CLAIMS.items() if result])
def test_what_claims_a_measurement_names_its_record_or_its_commit(page):
    assert [line[:200] for line, named in CLAIMS[page] if not named] == []
