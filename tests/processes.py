"""Processes that tests start: one that cannot outlive its test, in a group of its own that is killed at the end, and
one on a terminal of a given width; modules that a stranger puts where commands are run; and programs of this machine
that tests may call. Runs on Python 3.6."""
import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import termios

import pytest

TIMEOUT_S = 240


def run_bounded(call, streams="", reader=True, ignore_interrupts=False, cwd=None, **variables):
    """(exit code, stdout as bytes, stderr as text), without a terminal and with an empty stdin.

    streams: redirections as a shell takes them, `>/dev/full 2>&-`. reader=False: nobody reads stdout, a
    pipe. A process that has not ended after TIMEOUT_S fails the test.
    """
    environment = dict(os.environ, **variables)
    environment.pop("PYTHONUNBUFFERED", None)  # a user's stdout is buffered
    handler = signal.SIG_IGN if ignore_interrupts else signal.SIG_DFL
    reading, writing = os.pipe()
    if not reader:
        os.close(reading)
    words = ["sh", "-c", 'exec "$@" ' + streams, "sh"] + [str(word) for word in call]
    process = subprocess.Popen(
        [word.encode("utf-8") for word in words], cwd=cwd, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if reader else writing, stderr=subprocess.PIPE,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, handler))
    os.close(writing)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        with contextlib.suppress(OSError):  # nobody is left in it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if reader:
            os.close(reading)
    return process.returncode, out or b"", err.decode("utf-8", "replace")


def on_a_terminal(call, width=80, typed=b"", both=True, start=subprocess.Popen, **environment):
    """(exit code, text shown) of a process whose stdin and stdout are a terminal, and with `both` its stderr.

    The text is without escape sequences, its lines end in a line feed. typed: bytes that the user enters. start: as
    subprocess.Popen."""
    variables = dict(os.environ, TERM="xterm", **environment)
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        variables.pop(name, None)
    own, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    with open(os.devnull, "wb") as null:
        process = start([str(word) for word in call], stdin=other, stdout=other,
                        stderr=other if both else null.fileno(), env=variables)
    os.close(other)
    os.write(own, typed)
    text = read_until_closed(own).decode("utf-8").replace("\r\n", "\n")
    return process.wait(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def read_until_closed(fd):
    """The bytes that a terminal got until its other end was closed. fd: its file descriptor, closed here."""
    shown = b""
    while True:
        try:
            shown += os.read(fd, 4096)
        except OSError:  # the other end is closed
            os.close(fd)
            return shown


NAMES = ("numpy", "pip", "venv", "torch", "json", "onnxruntime", "tokenizers", "psutil", "argparse", "subprocess",
         "multiprocessing", "linecache")
MODULE = "open({!r}, 'a').write(__file__ + chr(10))\n"


def environment(**variables):
    """Return this process's environment without PYTHONSAFEPATH, which a command that a test calls in-process leaves."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return dict(kept, **variables)


class Hostile:
    """A folder with modules that a stranger put there: each leaves a mark when it is imported. Commands run in it."""

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


BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


@contextlib.contextmanager
def headless():
    driven = pytest.importorskip("playwright.sync_api").sync_playwright
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}; on Debian: apt-get install chromium")
    with driven() as driver:
        result = driver.chromium.launch(executable_path=path, args=list(QUIET))
        yield result
        result.close()


HEADERS = ["-fsyntax-only", "-include", "stdio.h", "-x", "c", "/dev/null"]


def has_headers(compiler):
    """Whether a compiler is here with the headers of its C library."""
    return bool(shutil.which(compiler)) and not subprocess.call([compiler] + HEADERS, stderr=subprocess.DEVNULL)


def fetched(name, *command):
    """A folder in the user's cache into which a command put other people's files, by its last argument. Skips where
    it cannot: without network."""
    folder = os.path.join(os.environ["MERINO_USERS_CACHE"], "merino_edge", "fetched", name)
    if not os.path.isdir(folder):
        part = folder + ".part"
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(os.path.dirname(part), exist_ok=True)
        if subprocess.call([*command, part], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            pytest.skip("cannot be fetched here: " + name)
        os.rename(part, folder)
    return folder


def sdist(package, into, inside):
    """The folder of a package's sources, such as `jsonschema==4.26.0`, of which files whose paths have `inside` in them
    are unpacked into a folder."""
    folder = fetched(package.replace("==", "-"), sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                     "--no-binary", package.partition("==")[0], package, "--dest")
    (name,) = os.listdir(folder)
    with tarfile.open(os.path.join(folder, name)) as archive:
        archive.extractall(str(into), [member for member in archive if inside in member.name], filter="data")
    return into / name.replace(".tar.gz", "")
