"""Runs installs that are hit at a chosen operation on the file system: killed there, or told that the disk is full.

    python install_faults.py      requests on stdin, answers on stdout, one JSON object per line

It has numpy and the backend imported, and forks for each request: a run costs milliseconds. The self-test of a release
is its own `selftest installed` in another fork, in place of its launcher. All else is as in the real command.
A test file starts it as a `Driver`.
"""
import builtins
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy  # noqa: F401
import onnxruntime  # noqa: F401

from merino_runtime.__main__ import main
from merino_runtime.backends import onnx, onnx_session  # noqa: F401
from merino_runtime.delivery import archive, install, probation, releases, verbs  # noqa: F401
from merino_runtime.errors import MerinoError
from merino_runtime.io import outputs

PIECE = 30_000  # bytes per write of an unpacked file: kills in the middle of files too
CALLS = ("mkdir", "open", "rename", "replace", "symlink", "unlink", "rmdir", "fsync", "chmod", "ftruncate", "pwrite",
         "listdir", "scandir")
TAKE_SPACE = ("mkdir", "open", "symlink", "write", "pwrite")


class Driver:
    """This file in a process of its own, whose home is `home`."""

    def __init__(self, home):
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), HOME=home))

    def run(self, argv, **request):
        """What `answer` returns."""
        self.process.stdin.write(json.dumps(dict(request, argv=argv)).encode("utf-8") + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline().decode("utf-8"))

    def close(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


class Hit:
    """Counts operations; at number `at` it does `what`: `kill`, `error` (once), or `full` (from then on)."""

    def __init__(self, what, at):
        self.what, self.at, self.count, self.active = what, at, 0, True

    def before(self, name, arguments=()):
        if not self.active:
            return
        number, self.count = self.count, self.count + 1
        if self.what == "kill" and number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        reading = name == "open" and len(arguments) > 1 and not arguments[1] & os.O_CREAT
        full = self.what == "full" and number >= self.at and name in TAKE_SPACE and not reading
        if full or self.what == "error" and number == self.at:
            raise OSError(errno.ENOSPC if full else errno.EIO, os.strerror(errno.ENOSPC if full else errno.EIO))

    def wrapped(self, name, call):
        def run(*arguments, **options):
            self.before(name, arguments)
            return call(*arguments, **options)
        return run

    def file(self, opened):
        """A file whose writes count, and reach the disk one by one."""
        hit = self

        class Counted:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                opened.close()

            def __getattr__(self, name):
                return getattr(opened, name)

            def write(self, data):
                hit.before("write")
                half = len(data) // 2
                opened.write(data[:half])
                opened.flush()
                hit.before("write")
                opened.write(data[half:])
                opened.flush()

        return Counted()

    def install(self):
        for name in CALLS:
            setattr(os, name, self.wrapped(name, getattr(os, name)))
        fdopen = os.fdopen
        os.fdopen = lambda handle, mode="r", *more: (
            self.file(fdopen(handle, mode, *more)) if mode == "wb" else fdopen(handle, mode, *more))
        outputs.open = lambda path, mode: self.opened(path, mode)
        archive.COPIED_AT_ONCE = PIECE

    def opened(self, path, mode):
        if "b" in mode and mode != "rb":
            self.before("open", (path, os.O_CREAT))
            return self.file(builtins.open(path, mode))
        return builtins.open(path, mode)


def forked_selftest(hit):
    """In place of a launcher's process: the same verb of the same code, in a fork."""
    def run(folder, *_):
        hit.before("selftest")
        pid = os.fork()
        if pid == 0:
            hit.active = False
            sys.argv[0] = os.path.join(folder, releases.APP)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os._exit(main(["selftest", "installed"]))
        _, status = os.waitpid(pid, 0)
        if status:
            raise MerinoError("the self-test failed")
    return run


def answer(request):
    """{argv, what, at, clock} -> {code, killed, count, said} of a fork that runs the board's command line."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        hit = Hit(request.get("what"), request.get("at", -1))
        install.selftest = forked_selftest(hit)
        for stream in (1, 2):
            os.dup2(writer, stream)
        if "clock" in request:
            time.time = lambda: request["clock"]
            time.gmtime = lambda *_: time.struct_time((1970, 1, 1, 0, 0, 1, 3, 1, 0))
        hit.install()
        code = main(request["argv"])
        hit.active = False
        print("\noperations", hit.count, flush=True)
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        output = file.read().decode("utf-8", "replace")
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status)
    output, _, count = output.rpartition("\noperations") if "\noperations" in output else (output, None, None)
    return {"code": None if killed else os.WEXITSTATUS(status), "killed": killed, "count": count and int(count),
            "output": output}


def serve():
    for line in sys.stdin:
        request = json.loads(line)
        if "copy" in request:  # a state to begin from
            shutil.rmtree(request["to"], ignore_errors=True)
            shutil.copytree(request["copy"], request["to"], symlinks=True)
        print(json.dumps(answer(request)), flush=True)


if __name__ == "__main__":
    serve()
