"""A board that lacks a package: one line that says how to install it there, whichever package and verb."""
import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec

import pytest

from merino_runtime.bundle.requirements import PACKAGES, install_commands

PATH = os.pathsep.join(os.path.abspath(path) for path in sys.path)
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from {}.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
VERBS = [("merino_runtime", "generate", ["the", "-n", "1"]), ("merino_runtime", "selftest", [])]
if find_spec("merino_bench"):
    VERBS += [("merino_bench", "bench", []), ("merino_bench", "probe", ["-o", os.devnull])]


def needed(verb):
    """Packages that a verb imports in its own process: `bench` starts others, and only texts need tokenizers."""
    return {"generate": PACKAGES, "bench": ["numpy"]}.get(verb, [name for name in PACKAGES if name != "tokenizers"])


@pytest.mark.parametrize("package, verb, arguments, absent", [
    (*words, name) for words in VERBS for name in needed(words[1])])
def test_every_verb_without_a_package_says_how_to_install_it(package, verb, arguments, absent, bundle_dirs):
    folder = [] if verb == "probe" else [str(bundle_dirs["portable"])]
    call = [sys.executable, "-c", WITHOUT.format(package), absent, verb] + folder + arguments
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(os.environ, PYTHONPATH=PATH))
    out, err = process.communicate()
    output = err.decode().splitlines()[-1]
    assert process.returncode == 1 and out == b"" and "Traceback" not in err.decode()
    assert output.startswith(f"merino: {absent} cannot be imported") and "-m pip install --only-binary=:all: " in output


@pytest.fixture
def system_python(monkeypatch, tmp_path):
    """This process as it were outside any virtual environment, its standard library in tmp_path."""
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


UPGRADE = "{0} -m pip install --upgrade pip && " if sys.version_info < (3, 7) else ""  # run for real: tests/targets


def test_where_the_system_refuses_pip_the_remedy_is_a_virtual_environment(system_python):
    install = f"{sys.executable} -m pip install --only-binary=:all: {' '.join(PACKAGES)}"
    assert install_commands() == f"Run: {UPGRADE.format(sys.executable)}{install}"
    (system_python / "EXTERNALLY-MANAGED").write_text("[externally-managed]\n")
    assert install_commands(["numpy", "onnxruntime>=1.18"]) == (
        "Run: python3 -m venv ~/merino && " + UPGRADE.format("~/merino/bin/python") +
        "~/merino/bin/python -m pip install --only-binary=:all: numpy "
        "'onnxruntime>=1.18' (and from then on ~/merino/bin/python in place of python3)")
