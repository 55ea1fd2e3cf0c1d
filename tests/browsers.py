"""The browser of tests: this machine's Chromium, headless."""

import shutil
from contextlib import contextmanager

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


@contextmanager
def headless():
    driven = pytest.importorskip("playwright.sync_api").sync_playwright
    path = next((result for name in BROWSERS if (result := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}; on Debian: apt-get install chromium")
    with driven() as driver:
        result = driver.chromium.launch(executable_path=path, args=list(QUIET))
        yield result
        result.close()
