"""The report of records: its claims, its two kinds of ratio, that no text in it runs. It
is opened in a real browser: it loads nothing, fits a phone and turns dark."""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import pytest
from processes import headless
from sample_probe import with_errors
from sample_records import OURS, failed, many, opt, record

from merino_edge.cli.app import main
from merino_edge.design.space import Space
from merino_edge.families.designed import Architecture
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_edge.records.reading import read_records
from merino_edge.records.schema import Record
from merino_edge.report import tables as words
from merino_edge.report.charts import cache_points, charts_of
from merino_edge.report.page import markdown, page
from merino_edge.report.summary import summarize
from merino_edge.report.tables import number

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "demo-x86-2cores.json"
SPACE = Space(widths=tuple(range(64, 321, 64)), depths=(3, 6, 9), ffn_ratios=(1.0, 2.0))
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'|&"


def summary_of(*raw, board=None):
    return summarize([Record.model_validate(one) for one in raw], load_profile(board) if board else None)


def test_the_committed_page_is_the_one_of_the_committed_records():
    committed = (ROOT / "docs" / "report-x86-2cores.html").read_text(encoding="utf-8")
    # The text layout of a drawing depends on matplotlib's version, so drawings are compared by what they describe.
    made, kept = (re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
                  for text in (page(summarize(read_records([RESULTS]))), committed))  # fmt: skip
    assert made == kept, (
        "remake it: merino-edge report bench/results/demo-x86-2cores.json -o docs/report-x86-2cores.html"
    )


def test_the_reference_is_recognized_by_its_parameters_not_by_its_name():
    result = summary_of(record(10, bundle="opt-350m"), opt(50, bundle="renamed"))
    assert result.headline.reference.bundle == "renamed" and result.headline.model.bundle == "opt-350m"


def test_equal_and_shipped_ratios_are_never_mixed():
    result = summary_of(*many())
    assert result.equal and result.shipped
    for each in result.equal:
        assert (each.model.engine, each.model.precision, each.model.dialect, each.model.board) == (
            each.reference.engine, each.reference.precision, each.reference.dialect, each.reference.board)  # fmt: skip
    for each in result.shipped:
        assert (each.model.engine, each.model.precision) != (each.reference.engine, each.reference.precision)
    for each in (*result.equal, *result.shipped):
        rows = [[row for row in side.records if (row.test, row.cached) == (each.test, each.cached)]
                for side in (each.model, each.reference)]  # fmt: skip
        own, other = (geometric_mean(one[0].speeds) for one in rows)
        assert each.speed.value == pytest.approx(own / other)
    forms = {(each.model.bundle, each.model.precision) for each in result.shipped}
    assert forms == {("ours", "int4"), ("small", "fp32")}, "the fastest form of each bundle"


def test_failed_and_foreign_rows_are_in_no_ratio():
    assert summary_of(failed(), opt()).equal == ()
    elsewhere = {**record()["environment"], "board": "Another board"}
    assert summary_of(record(10, environment=elsewhere), opt()).equal == ()


@pytest.mark.parametrize(("design_flags", "opt_flags", "flags"), [
    ({"flags": ["busy"]}, {}, ("busy",)), ({}, {"flags": ["swapping"]}, ("swapping",)),
    ({}, {"flags": ["throttled"]}, ("throttled",)), ({"flags": ["throttled"]}, {"flags": ["throttled"]}, ()),
    ({"disturbed": [["busy"], ["busy"]]}, {}, ()),
])  # fmt: skip
def test_a_disturbed_ratio_is_shown_and_marked(design_flags, opt_flags, flags):
    for run in (None, "one"):
        result = summary_of(record(10, run=run, **design_flags), opt(run=run, **opt_flags))
        assert result.headline.speed.value == pytest.approx(5, rel=0.02) and result.headline.speed.flags == flags
    shown = page(result) + markdown(result)
    assert ("disturbed: " in shown) == bool(flags) and words.headline(result).startswith("5.0× as fast")


def test_an_undisturbed_ratio_is_the_headline_before_a_disturbed_one():
    result = summary_of(record(10, flags=["busy"]), opt(), record(9, depth=512), opt(45, depth=512))
    assert result.headline.cached == 512 and len(result.equal) == 2
    lone = summary_of(record(10, flags=["busy"]))
    assert "1 of 1 rows had fewer than three undisturbed processes" in words.flags_words(lone)
    assert words.headline(lone).endswith("tokens per second")


def test_of_several_thread_counts_the_fastest_reference_counts():
    result = summary_of(record(10, 0), opt(60, 0, threads=1), opt(50, 0, threads=2))
    assert [each.speed.value for each in result.equal] == [pytest.approx(5)]
    assert result.equal[0].reference.threads == 2


def test_rows_of_one_run_have_the_interval_of_their_pairs_and_the_count_of_dropped_ones():
    own, other = record(10, 0.2, run="one", disturbed=[["busy"]]), opt(50, 0.2, run="one")
    other["rounds_ms"] = [[5 * ms for ms in one] for one in own["rounds_ms"]]
    (each,) = summary_of(own, other).equal
    assert (each.speed.low, each.speed.high) == (pytest.approx(5), pytest.approx(5)) and each.speed.turns == (4, 5)
    assert "(5.00 to 5.00, 4 of 5 pairs)" in words.ratio_words(each.speed)


def test_predictions_are_the_cost_models_and_name_the_machine_of_the_measurement():
    result = summary_of(record(10), record(30, test="pp64"), opt(), record(9, engine="llama.cpp 1", dialect=None),
                       board="raspberry-pi-4")  # fmt: skip
    by_what = {one.what: one for one in result.predictions if one.series.bundle == "ours"}

    def predict(context, prompt):
        return cost_model(profile, InferenceShape("fp32", context, prompt)).predict(operators)

    operators, profile = Architecture.model_validate(OURS).operators, load_profile("raspberry-pi-4")
    assert by_what["decode"].predicted == predict(8 + 16, 8).decode_ms
    assert by_what["prefill"].predicted == predict(64, 64).prefill_ms
    assert by_what["memory"].predicted == predict(2048, 64).memory_mb
    assert not any(one.here for one in result.predictions)
    assert {one.series.engine for one in result.predictions} == {"onnxruntime 1.32.0 CPU"}
    on_pi = {**record()["environment"], "board": "Raspberry Pi 4 Model B Rev 1.4"}
    there = summary_of(record(10, environment=on_pi), board="raspberry-pi-4")
    assert all(one.here for one in there.predictions) and there.predictions


def test_a_quantized_cache_is_a_series_of_its_own_with_its_own_predictions_and_bytes():
    rows = [record(10), record(30, test="pp64"), record(8, kv="int8"), record(20, test="pp64", kv="int8")]
    result = summary_of(*rows, board="raspberry-pi-4")
    assert [one.label for one in result.series] == ["ours fp32", "ours fp32 int8 cache"]
    operators, board = Architecture.model_validate(OURS).operators, load_profile("raspberry-pi-4")
    for one in result.predictions:
        if one.what == "memory":
            shape = InferenceShape("fp32", 2048, 64, one.series.kv)
            assert one.predicted == cost_model(board, shape).predict(operators).memory_mb
    floats, whole = (parts.kv_mb for parts in result.memory)
    assert floats == pytest.approx(4 * whole)
    assert "int8 cache" in markdown(result).splitlines()[-3]
    (equal,) = summary_of(record(10), record(8, kv="int8"), opt(50)).equal
    assert (equal.model.kv, equal.speed.value) == (None, pytest.approx(5, rel=0.02))
    (equal,) = summary_of(record(10), record(8, kv="int8"), opt(40, kv="int8")).equal
    assert (equal.model.kv, equal.speed.value) == ("int8", pytest.approx(5, rel=0.02))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"precision": "fp16"}, "the CPU cost model has no coefficients for fp16, only for fp32, int8, int4"),
    ({"engine": "llama.cpp 7", "precision": "F32"}, "the cost model covers ONNX Runtime and TensorRT only"),
    ({"engine": "tensorrt 8.2.1.8 fp16 X1"}, "the profile of raspberry-pi-4 has no performance.tensorrt"),
    ({"family": None, "architecture": None}, "the records have no architecture of a known family"),
])  # fmt: skip
def test_a_report_says_which_rows_have_no_prediction_and_why(changes, reason):
    rows = record(10), record(30, test="pp64"), record(8, bundle="other", **changes)
    result = summary_of(*rows, board="raspberry-pi-4")
    assert {one.series.bundle for one in result.predictions} == {"ours"}
    assert [(series.bundle, why) for series, why in result.unpredicted] == [("other", reason)]
    output = f"No prediction for {result.unpredicted[0][0].label}: {reason}."
    assert output in page(result) and output in markdown(result).replace("\\", "")
    without_board = summary_of(*rows)
    assert not without_board.unpredicted and "No prediction" not in markdown(without_board)


def test_rows_of_a_gpu_are_held_against_its_own_figures():
    gpu = {"engine": "tensorrt 8.2.1.8 fp16 NVIDIA Tegra X1", "dialect": "portable", "bundle": "gpu"}
    result = summary_of(record(10), record(10, **gpu), record(30, test="pp64", **gpu), board="jetson-nano")
    by_bundle = {(one.series.bundle, one.what): one.predicted for one in result.predictions}
    assert {what for bundle, what in by_bundle if bundle == "gpu"} == {"decode", "prefill"} and not result.unpredicted
    series = next(one.series for one in result.predictions if one.series.bundle == "gpu")
    board, row = load_profile("jetson-nano"), series.decode
    costs = cost_model(board, InferenceShape("fp16", series.context, max(1, row.cached)))
    assert by_bundle["gpu", "decode"] == costs.predict(series.operators).decode_ms != by_bundle["ours", "decode"]


def test_memory_parts_add_up_and_kv_is_separate_only_with_a_known_architecture():
    known, unknown = summary_of(record(10), record(10, bundle="plain", family=None, architecture=None)).memory
    assert known.kv_mb > 0 and unknown.kv_mb is None
    for parts in (known, unknown):
        assert parts.weights_mb + (parts.kv_mb or 0) + parts.rest_mb == pytest.approx(420.0)


def test_cache_points_are_medians_of_each_depth_or_of_slices_of_the_steps():
    (deep,) = summary_of(record(10, 0, depth=512), record(8, 0)).series
    assert cache_points(deep) == ((8 + 15.5, pytest.approx(8)), (512 + 15.5, pytest.approx(10)))
    rounds = [[float(1 + step // 8) for step in range(32)]] * 3
    (single,) = summary_of(record(10, rounds_ms=rounds, repetitions=3)).series
    assert [value for _, value in cache_points(single)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_charts_show_the_records_values():
    """Read back from the drawn figures, and worked out here from the rows."""
    summary = summary_of(*many(), board="raspberry-pi-4")
    figures = {chart.name: chart.draw() for chart in charts_of(summary)}
    assert list(figures) == ["size", "cache", "latency", "memory"]
    decoding = [one for one in summary.series if one.decode and one.params]
    marks = [line for line in figures["size"].axes[0].lines if line.get_marker() != "None"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == [
        (one.params / 1e6, one.decode.tok_s) for one in decoding]  # fmt: skip
    assert len({(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in marks}) == len(marks)
    assert [text.get_text().split(" (")[0] for text in figures["size"].legends[0].get_texts()] == [
        one.label for one in decoding]  # fmt: skip
    by_depth = {one.label: tuple(zip(*cache_points(one), strict=True)) for one in summary.series if cache_points(one)}
    for line, text in zip(figures["cache"].axes[0].lines, figures["cache"].legends[0].get_texts(), strict=True):
        assert (tuple(line.get_xdata()), tuple(line.get_ydata())) == by_depth[text.get_text()]
    widths = [bar.get_width() for bars in figures["memory"].axes[0].containers for bar in bars]
    assert widths == [value for parts in summary.memory
                      for value in (parts.weights_mb, parts.kv_mb or 0, parts.rest_mb)]  # fmt: skip
    samples = decoding[0].decode.samples_ms
    lines = [line.get_xdata()[0] for line in figures["latency"].axes[0].lines]
    assert lines == [pytest.approx(np.percentile(samples, rank)) for rank in (50, 90, 99)]


def test_a_page_loads_nothing_and_each_chart_has_its_provenance():
    html = page(summary_of(*many(), board="raspberry-pi-4"))
    html = re.sub(r' xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<link (?!rel=\"icon\" href=\"data:,\")", html)
    assert "measured on Test board" in html and "Predicted for Raspberry Pi 4" in html
    assert html.count('class="provenance"') == html.count("<figure") == 4


def test_text_of_a_record_is_shown_and_never_run():
    raw = [record(10, bundle=EVIL, engine=f"onnxruntime {EVIL}", notes=[EVIL]), opt(engine=f"onnxruntime {EVIL}"),
           failed(bundle=EVIL, flags=[f"failed: {EVIL}"])]  # fmt: skip
    html = page(summary_of(*raw))
    assert "<script" not in html and "<img" not in html and "&lt;img" in html
    text = markdown(summary_of(*raw))
    assert "<img" not in re.sub(r"\\<", "", text) and "<script" not in re.sub(r"\\<", "", text)
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (8, 9, 13, 14), line


def test_markdown_is_short_and_says_how_many_rows_it_omits():
    text = markdown(summary_of(*many(), board="raspberry-pi-4"))
    assert text.startswith("### 6.8× as fast as OPT-350M") and "19 of 50 rows" in text
    assert "Predicted for Raspberry Pi 4" in text and "broken tg32 failed: out of memory" in text
    assert "At equal engine and format" in text and "As shipped" in text


def test_a_measurement_is_held_against_the_interval_where_the_board_has_one():
    """On the board itself alone: another machine's measurement says nothing of the prediction."""
    board = with_errors(load_profile("raspberry-pi-4"), center=0.0)
    rows = [Record.model_validate(record(step_ms)) for step_ms in (10.0, 1e5)]
    shown = summarize(rows[:1], board).predictions[0]
    assert shown.interval[0] < shown.predicted < shown.interval[1] and not shown.here and shown.verdict == ""
    inside = replace(shown, here=True, measured=shown.predicted)
    low, high = (f"{end:.3g}" for end in shown.interval)
    assert inside.verdict == f"within {low} to {high}"
    assert replace(inside, measured=1e5).verdict == f"outside {low} to {high}"
    summary = replace(summarize(rows[:1], board), predictions=(inside,))
    assert f"within {low} to {high}" in page(summary) and f"| within {low} to {high} |" in markdown(summary)
    point = with_errors(load_profile("raspberry-pi-4"), forms=())
    assert summarize(rows[:1], point).predictions[0].interval is None


def test_records_without_the_reference_make_a_report_without_ratios():
    result = summary_of(record(10), record(4, precision="int8"))
    assert words.headline(result) == f"ours decodes {number(result.series[1].decode.tok_s)} tokens per second"
    assert "Against OPT-350M" not in page(result) and "so there is no ratio" in page(result)
    only_failed = summary_of(failed())
    assert "out of memory" in page(only_failed) and "out of memory" in markdown(only_failed)


def test_series_with_the_same_name_have_different_labels():
    labels = [one.label for one in summary_of(record(), record(threads=1), record(engine="llama.cpp 7")).series]
    assert labels == ["ours fp32, 2 threads", "ours fp32, 1 thread", "ours fp32 llama.cpp"]


def test_the_command_writes_the_page_and_prints_the_markdown(tmp_path, capsys):
    results, out = tmp_path / "r.json", tmp_path / "deep" / "report.html"
    results.write_text(json.dumps(many()))
    with pytest.raises(SystemExit) as done:
        main(["report", str(results), "-o", str(out), "--board", "raspberry-pi-5"])
    assert done.value.code == 0
    output = capsys.readouterr()
    assert output.out == "" and f"wrote {out}" in output.err
    assert "Raspberry Pi 5" in out.read_text(encoding="utf-8")
    for arguments, code in (([results], 0), ([tmp_path / "no.json"], 1), ([results, "--board", "pi"], 1)):
        with pytest.raises(SystemExit) as done:
            main(["report", *map(str, arguments)])
        assert done.value.code == code and capsys.readouterr().out.startswith("### 6.8×") == (code == 0)


@pytest.fixture(scope="module")
def browser():
    with headless() as driver:
        yield driver


def written(folder, results, *options):
    with pytest.raises(SystemExit) as done:
        main(["report", str(results), "-o", str(folder / "report.html"), *options])
    assert done.value.code == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Files by name: of the committed records, and of many synthetic ones with predictions."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("committed", "many")}
    (folders["many"] / "many.json").write_text(json.dumps(many()))
    return {
        "committed": written(folders["committed"], RESULTS),
        "many": written(folders["many"], folders["many"] / "many.json", "--board", "raspberry-pi-4"),
    }


@pytest.fixture
def opened(browser):
    """A function: (file, width, scheme) -> the page; what it said and asked for is judged when the test ends."""
    pages, output, requested = [], [], []

    def open_page(path, width=1280, scheme="light"):
        shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown.on("console", lambda message: output.append(message.text))
        shown.on("pageerror", lambda error: output.append(str(error)))
        shown.on("request", lambda request: requested.append(request.url))
        shown.goto(path.as_uri())
        pages.append(shown)
        return shown

    yield open_page
    for shown in pages:
        shown.close()
    assert output == [] and [url for url in requested if not url.startswith("data:")] == [
        url for url in requested if url.startswith("file:") and url.endswith("/report.html")]  # fmt: skip
    assert len([url for url in requested if url.startswith("file:")]) == len(pages)


LIGHT = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
# Texts that reach out of their drawing, or of the page.
OUTSIDE = """[...document.querySelectorAll('figure svg text, h1, h2, h3, p, dt, dd')].filter(text => {
    const box = text.getBoundingClientRect();
    const around = (text.closest('svg') || document.body).getBoundingClientRect();
    return box.width && (box.left < around.left - 1 || box.right > around.right + 1);
  }).map(text => text.textContent)"""


@pytest.mark.slow
def test_the_policy_forbids_what_the_page_does_not_need(browser, reports):
    """The control: were the page to ask for something, these listeners would tell, and nothing would leave."""
    shown = browser.new_page()
    output, failed = [], []
    shown.on("console", lambda message: output.append(message.text))
    shown.on("requestfailed", lambda request: failed.append(request.url))
    shown.goto(reports["committed"].as_uri())
    shown.evaluate("""() => {
        const script = document.createElement('script'), image = document.createElement('img');
        script.textContent = 'window.hacked = 1'; image.src = 'http://127.0.0.1:9/x.png';
        document.body.append(script, image);
    }""")
    shown.wait_for_timeout(200)
    assert shown.evaluate("typeof window.hacked") == "undefined"
    assert len([text for text in output if "Content Security Policy" in text]) == 2, output
    shown.close()
