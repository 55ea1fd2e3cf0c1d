"""The base install: commands run, with their children, where no module of an extra can be imported."""

import json
import os
import subprocess
import sys

import pytest
from sample_records import many

from merino_edge.storage.extras import EXTRA_OF, not_installed

pytestmark = pytest.mark.slow

# Python imports sitecustomize in each process, so in children of a command too.
BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(EXTRA_OF)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

sys.meta_path.insert(0, Blocked())
"""
SMALL = ["--device", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64"]


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """A function: words -> the finished process, in one folder."""
    folder, site = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(BLOCKED)
    (folder / "r.json").write_text(json.dumps(many()))
    (folder / "t.txt").write_text("The miller counts sacks of flour.\n")
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry)])
    call = [sys.executable, "-c", "from merino_edge.cli.start import main; main()"]

    def run(*words):
        return subprocess.run([*call, *words], cwd=folder, capture_output=True, text=True, input="",
                              env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"})  # fmt: skip

    return run


def test_the_base_runs_these_commands_without_any_extra(edge):
    for words in (
        ["devices"], ["recommend", "--device", "raspberry-pi-4"], ["design", *SMALL, "-o", "design.json"],
        ["pareto", *SMALL, "--plot", "front.svg"], ["generate", "embedded", "Once", "-n", "3"],
        ["bench", "embedded", "-p", "8", "-n", "4", "-r", "1"], ["pack", "embedded", "-o", "p.merino"],
        ["info", "p.merino"], ["verify", "p.merino"], ["score", "opt-125m"], ["compare", "r.json", "r.json"],
        ["report", "r.json", "-o", "r.html", "--device", "raspberry-pi-4"],
        ["eval", "embedded", "--perplexity", "t.txt"],
    ):  # fmt: skip
        done = edge(*words)
        assert done.returncode == 0, (words, done.stderr)
    # Without a template or a root file system they end with their own refusal, behind all imports.
    for words, refusal in (
        (["chat", "embedded"], "has no chat template"),
        (["flash", "p.merino", "--rootfs", ".", "--allow-unsigned", "--dry-run"], "is not a root file system"),
    ):
        assert refusal in edge(*words).stderr


@pytest.mark.parametrize(("words", "module", "extra"), [
    (["export", "opt-125m", "--weights", "random", "-o", "b"], "torch", "export"),
    (["check", "embedded", "--tensorrt", "8.2"], "onnx", "export"),
    (["train", "design.json", "--data", "t.txt", "-o", "o"], "accelerate", "train"),
    (["keygen", "-o", "k"], "cryptography", "delivery"),
    (["flash", "p.merino", "--ssh", "nowhere", "--allow-unsigned"], "asyncssh", "delivery"),
])  # fmt: skip
def test_a_command_that_needs_an_extra_names_it(edge, words, module, extra):
    edge("design", *SMALL, "-o", "design.json")
    done = edge(*words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"{module} is not installed" in last and f"-e '.[{extra}]'" in last


def test_a_module_of_no_extra_is_a_fault_of_this_project():
    assert not_installed(ModuleNotFoundError(name="merino_edge.nowhere")) is None
