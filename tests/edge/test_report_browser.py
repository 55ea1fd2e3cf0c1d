"""The report and the front in a real browser: they load nothing, fit a phone, need no script, and turn dark."""

import json
from pathlib import Path

import pytest
from local_programs import headless
from sample_records import many, opt, record

from merino_edge.cli.app import main
from merino_edge.design.pareto import front
from merino_edge.design.space import Space
from merino_edge.profiles.reading import load_profile
from merino_edge.report.front import front_svg

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results" / "demo-x86-2cores.json"
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


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
        "many": written(folders["many"], folders["many"] / "many.json", "--device", "raspberry-pi-4"),
    }


@pytest.fixture
def opened(browser):
    """A function: (file, width, scheme) -> the page; what it said and asked for is judged when the test ends."""
    pages, output, requested = [], [], []

    def open_page(path, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: output.append(message.text))
        page.on("pageerror", lambda error: output.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert output == [] and [url for url in requested if not url.startswith("data:")] == [
        url for url in requested if url.startswith("file:") and url.endswith("/report.html")]  # fmt: skip
    assert len([url for url in requested if url.startswith("file:")]) == len(pages)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["committed", "many"])
def test_it_fits_and_asks_for_nothing(reports, opened, name, width, scheme):
    page = opened(reports[name], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate(LIGHT)
    assert light > 200 if scheme == "light" else light < 60
    shown = page.locator("figure svg:visible")
    assert shown.count() == page.locator("figure").count() >= 4
    assert {shown.nth(place).get_attribute("class") for place in range(shown.count())} == {
        "narrow" if width < 620 else "wide"}  # fmt: skip
    assert page.evaluate(TEXT_PX) >= 10.1
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPS) == []


def test_charts_and_tables_need_neither_script_nor_network(browser, reports):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(reports["many"].as_uri())
    assert page.locator("figure svg:visible").count() == page.locator("figure").count() == 9
    assert "opt-350m int8 ctranslate2" in page.locator("#chart-size svg.wide").text_content()
    assert page.locator("#records tbody tr").count() == 50
    context.close()


@pytest.mark.parametrize("axis", ["decode_ms", "memory_mb"])
def test_a_front_in_the_browser_has_no_text_outside_and_no_label_on_another(browser, tmp_path, axis):
    path = tmp_path / "front.svg"
    space = Space(widths=tuple(range(64, 385, 64)), depths=(2, 4, 6), ffn_ratios=(1.0, 2.0))
    board = load_profile("raspberry-pi-zero-2w")
    path.write_text(front_svg(front(board, {}, axis, 3, space=space, context=128, prompt=64, vocabs=[2000])))
    page = browser.new_page(viewport={"width": 800, "height": 700})
    page.goto(path.as_uri())
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate("""[...document.querySelectorAll('text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < 0 || box.right > 800 || box.top < 0 || box.bottom > 600;
      }).map(text => text.textContent)""") == []
    page.close()


LIGHT = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
# The smallest size of a drawing's text as shown, in px.
TEXT_PX = """Math.min(...[...document.querySelectorAll('figure svg')].filter(svg => svg.getBoundingClientRect().width)
  .map(svg => 11 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"""
# Texts that reach out of their drawing, or of the page.
OUTSIDE = """[...document.querySelectorAll('figure svg text, h1, h2, h3, p, dt, dd')].filter(text => {
    const box = text.getBoundingClientRect();
    const around = (text.closest('svg') || document.body).getBoundingClientRect();
    return box.width && (box.left < around.left - 1 || box.right > around.right + 1);
  }).map(text => text.textContent)"""


# Pairs of texts of one drawing that cover each other; a px of two boxes' edges is no more than their padding.
OVERLAPS = """[...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width).flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')];
    return texts.flatMap((one, index) => texts.slice(index + 1).filter(other => {
        const a = one.getBoundingClientRect(), b = other.getBoundingClientRect();
        return a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
      }).map(other => [one.textContent, other.textContent]));
  })"""


def test_a_wide_table_scrolls_in_its_own_box(reports, opened):
    page = opened(reports["many"], 360)
    box = page.locator(".scroll", has=page.locator("#records"))
    wide = box.evaluate("box => box.scrollWidth - box.clientWidth")
    box.evaluate("box => { box.scrollLeft = 200; }")
    assert wide > 200 and box.evaluate("box => box.scrollLeft") == 200
    assert page.evaluate("window.scrollX") == 0


def test_a_script_in_a_name_does_not_run(opened, tmp_path):
    results = tmp_path / "evil.json"
    results.write_text(json.dumps([record(10, bundle=EVIL, notes=[EVIL]), opt(50)]))
    page = opened(written(tmp_path, results))
    assert page.evaluate("typeof window.hacked") == "undefined" and page.locator("img").count() == 0
    assert EVIL in page.locator("#records td").first.inner_text()


def test_the_policy_forbids_what_the_page_does_not_need(browser, reports):
    """The control: were the page to ask for something, these listeners would tell, and nothing would leave."""
    page = browser.new_page()
    output, failed = [], []
    page.on("console", lambda message: output.append(message.text))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(reports["committed"].as_uri())
    page.evaluate("""() => {
        const script = document.createElement('script'), image = document.createElement('img');
        script.textContent = 'window.hacked = 1'; image.src = 'http://127.0.0.1:9/x.png';
        document.body.append(script, image);
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert len([text for text in output if "Content Security Policy" in text]) == 2, output
    page.close()
