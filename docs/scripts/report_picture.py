"""Draws docs/pictures/report.png, the top of the demo's report in Chromium: `python docs/scripts/report_picture.py`.

By hand, after the report changed: the pixels depend on the browser's version and fonts, so no test compares them."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from merino_runtime.io.outputs import write_output

DOCS = Path(__file__).resolve().parents[1]
REPORT, PICTURE = DOCS / "report-x86-2cores.html", DOCS / "pictures" / "report.png"
SIZE = {"width": 1280, "height": 1180}


def drawn(report: Path) -> bytes:
    """A PNG of the page's top."""
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
    write_output(str(PICTURE), drawn(REPORT))
