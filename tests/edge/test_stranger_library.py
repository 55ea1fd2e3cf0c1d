"""A bundle from a stranger that brings a native library: no verb loads it, and `info` and `verify` name it."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from merino_runtime.bundle.fit import library_file
from tests.packed_files import app_bytes, bundle_files, packed_bytes
from tests.served import Server

ROOT = Path(__file__).parents[2]
BOARD, WORKSTATION = "merino_bench", "merino_edge.cli.start"
LIBRARY = library_file(platform.machine())  # the name that the release's own library has
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void run(void) { FILE *mark = fopen(getenv("MARK"), "w"); fclose(mark); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A shared library that makes the file $MARK as soon as it is loaded."""
    compiler = next(filter(shutil.which, ("cc", "gcc", "gcc-14")), None)
    if compiler is None:
        pytest.skip("no C compiler here to make a library with")
    folder = tmp_path_factory.mktemp("library")
    (folder / "run.c").write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "run.so", folder / "run.c"], check=True)
    return folder / "run.so"


@pytest.fixture(params=["as operators", "as paths"])
def folder(request, library, embedded_bundles, tmp_path):
    """A sound bundle but for one file more. As paths: `kernels` names the file itself, as bundles once did."""
    folder = Path(shutil.copytree(embedded_bundles["no-dotprod", "int4"], tmp_path / "bundle"))
    shutil.copy(library, folder / LIBRARY)
    description = json.loads((folder / "bundle.json").read_text())
    content = library.read_bytes()
    description["files"].append(
        {"path": LIBRARY, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    )
    if request.param == "as paths":
        description["kernels"] = [{"machine": platform.machine(), "path": LIBRARY}]
    (folder / "bundle.json").write_text(json.dumps(description))
    return folder


def is_taken(folder):
    """Whether its bundle.json follows the schema, so that it runs: by the library of the release."""
    return isinstance(json.loads((folder / "bundle.json").read_text())["kernels"][0], str)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "mark"


def run(module, *words):
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    words = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=variables)


def test_the_library_runs_where_it_is_loaded(library, mark):
    """Else the attacks would prove nothing."""
    subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"], check=True)
    assert mark.exists()


@pytest.mark.slow
def test_no_verb_of_either_side_loads_it(folder, mark, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox. " * 9)
    for module, *words in (
        (BOARD, "selftest", folder), (BOARD, "generate", folder, "Once", "-n", "2"), (BOARD, "info", folder),
        (BOARD, "bench", folder, "-p", "8", "-n", "2", "-r", "1"), (BOARD, "verify", folder),
        (BOARD, "generate", folder, "Once", "-n", "2", "--no-verify"), (WORKSTATION, "info", folder),
        (WORKSTATION, "generate", folder, "Once", "-n", "2"),
        (WORKSTATION, "eval", folder, "--perplexity", tmp_path / "text.txt"),
    ):  # fmt: skip
        done = run(module, *words)
        assert not mark.exists(), (words, "ran the library")
        assert done.returncode == (0 if is_taken(folder) else 1), (words, done.stderr)
        assert is_taken(folder) or "does not follow schema" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_server_does_not_load_it(folder, mark):
    if is_taken(folder):
        with Server(folder, XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"]) as server:
            assert server.call("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 2})[0] == 200
    else:
        assert run(BOARD, "serve", folder, "--port", "0").returncode == 1
    assert not mark.exists()


@pytest.mark.slow
def test_an_install_does_not_load_it(folder, mark, tmp_path):
    """The application is this project's, the bundle in the package is the stranger's."""
    packed = tmp_path / "a.merino"
    packed.write_bytes(packed_bytes(app_bytes(tmp_path / "app.pyz"), [bundle_files(folder)]))
    done = run(BOARD, "install", packed, "--root", tmp_path / "root", "--allow-unsigned")
    assert not mark.exists() and done.returncode == (0 if is_taken(folder) else 1), done.stderr


@pytest.mark.parametrize("folder", ["as operators"], indirect=True)
def test_info_and_verify_name_it(folder, mark):
    note = f"{LIBRARY} (never loaded from a bundle; runs only if you start it)"
    (folder / "merino.pyz").unlink()
    assert "code in it" in run(BOARD, "info", folder).stdout and note in run(BOARD, "info", folder).stdout
    assert f"code: {note}; kernels: GroupAttention, MatMul4" in run(BOARD, "verify", folder).stdout
    for verb in ("info", "verify"):
        assert json.loads(run(BOARD, verb, folder, "--json").stdout)["code"] == [LIBRARY]
    assert not mark.exists()
