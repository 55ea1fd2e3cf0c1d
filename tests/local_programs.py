"""Programs of this machine that tests may call: its Chromium, headless, and compilers of C.
"""
import shutil
import subprocess
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


HEADERS = ["-fsyntax-only", "-include", "stdio.h", "-x", "c", "/dev/null"]


def has_headers(compiler: str) -> bool:
    """Whether a compiler is here with the headers of its C library."""
    return bool(shutil.which(compiler)) and not subprocess.run([compiler, *HEADERS], capture_output=True).returncode
