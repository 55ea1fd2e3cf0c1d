"""A page as a picture, by this machine's Chromium: `python docs/scripts/screenshot.py PAGE.html OUT.png WIDTH HEIGHT`.

docs/pictures/report.png is docs/report-x86-2cores.html with 1280 x 1180."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    page, out, width, height = sys.argv[1:]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": int(width), "height": int(height)})
        tab.goto(Path(page).resolve().as_uri())
        tab.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main()
