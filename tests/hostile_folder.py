"""Modules that a stranger puts where commands are run: each leaves a mark when it is imported. Python 3.6 too."""
import os
import subprocess
import sys

NAMES = ("numpy", "pip", "venv", "torch", "json", "onnxruntime", "tokenizers", "psutil", "argparse", "subprocess",
         "multiprocessing", "linecache")
MODULE = "open({!r}, 'a').write(__file__ + chr(10))\n"


def environment(**variables):
    """Return this process's environment without PYTHONSAFEPATH, which a command that a test calls in-process leaves."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return dict(kept, **variables)


class Hostile:
    """A folder with such modules. Commands run in it."""

    def __init__(self, folder):
        self.folder, self.mark = str(folder), str(folder) + ".mark"
        self.fill(folder)

    def fill(self, folder):
        for name in NAMES:
            with open(os.path.join(str(folder), name + ".py"), "w") as file:
                file.write(MODULE.format(self.mark))

    def run(self, call, code=0, **variables):
        """Runs a command in the folder, and fails if a module there was imported. -> stdout and stderr"""
        done = subprocess.run([str(word) for word in call], cwd=self.folder, env=environment(**variables),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        printed = done.stdout.decode("utf-8", "replace")
        assert self.imported() == [], printed
        assert done.returncode == code, printed
        return printed

    def imported(self):
        if not os.path.exists(self.mark):
            return []
        with open(self.mark) as file:
            return file.read().split()


def check_modules(folder):
    """The modules do leave marks: the test of the test."""
    hostile = Hostile(folder)
    subprocess.run([sys.executable, "-c", "import numpy, pip"], cwd=hostile.folder, env=environment())
    assert {"numpy.py", "pip.py"} <= {os.path.basename(path) for path in hostile.imported()}
