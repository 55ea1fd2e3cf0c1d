"""Compilers of C that a test may call."""

import shutil
import subprocess

HEADERS = ["-fsyntax-only", "-include", "stdio.h", "-x", "c", "/dev/null"]


def has_headers(compiler: str) -> bool:
    """Whether a compiler is here with the headers of its C library."""
    return bool(shutil.which(compiler)) and not subprocess.run([compiler, *HEADERS], capture_output=True).returncode
