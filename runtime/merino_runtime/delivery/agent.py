"""The agent: what the workstation runs on a board over ssh. It runs programs, and receives files.

It is sent as text to `python3 -I -c` before this project is on the board, so it imports nothing of the project. It
reads one line of JSON from stdin, the request, and then the data of that request. Its replies are lines of JSON on
stdout after the line `BEGIN`, because a login shell may have printed before. `merino_edge.delivery.ssh` runs it.
"""
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any, BinaryIO, Callable, Dict, List, Optional

BEGIN = "merino: the answer begins"
CACHE = "@cache"  # in an argument or folder: this project's cache folder of this user
PYTHON = "@python"  # in an argument: the Python that runs this
BUFFER_BYTES = 1 << 18
SILENCE_S = 60  # without a byte of a file: then the workstation is gone, although the connection is open
KILL_AFTER_S = 5.0
NOT_FOUND = 127  # as a shell reports that there is no such program


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
    report(BEGIN)
    os._exit(REQUESTS[request.pop("do")](**request))  # a thread may wait for stdin, which a plain exit would wait for


def report(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def placed(text: str) -> str:
    """Return an argument with its placeholder filled in."""
    if text == PYTHON:
        return sys.executable
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return base + "/merino" + text[len(CACHE):] if text.startswith(CACHE + "/") else text


def run(arguments: List[str], stdin_bytes: Optional[int] = None) -> int:
    """Run a program, whose output is the agent's, and which ends with the connection. Its stdin follows the request;
    without `stdin_bytes` it receives this one's line by line. Return its exit code."""
    data = None if stdin_bytes is None else sys.stdin.buffer.read(stdin_bytes)
    try:
        child = subprocess.Popen(list(map(placed, arguments)), stdin=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        sys.stderr.write("cannot run {}: {}\n".format(arguments[0], error.strerror))
        sys.stderr.flush()
        return NOT_FOUND
    assert child.stdin
    threading.Thread(target=pass_lines_on if data is None else end_with_stdin, args=(child,), daemon=True).start()
    if data is not None:
        with contextlib.suppress(BrokenPipeError):  # the program does not read its stdin
            child.stdin.write(data)
            child.stdin.close()
    code = child.wait()
    return code if code >= 0 else 128 - code


def pass_lines_on(child: subprocess.Popen) -> None:
    assert child.stdin
    with contextlib.suppress(BrokenPipeError):
        for line in iter(sys.stdin.buffer.readline, b""):
            child.stdin.write(line)
            child.stdin.flush()
        child.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # it may still print, which nobody reads any more
        child.wait(KILL_AFTER_S)
    end_with_stdin(child)


def end_with_stdin(child: subprocess.Popen) -> None:
    """Wait for the end of stdin, that is, of the connection; then end the program and what it started."""
    while sys.stdin.buffer.read(1):
        pass
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            os.killpg(child.pid, number)
            child.wait(KILL_AFTER_S)


def receive(folder: str, name: str, size: int, sha256: str) -> int:
    """Receive a file of `size` bytes into a folder of the cache.

    NAME.part, which an earlier connection left, is kept. Report {done, free, part_bytes, part_sha256}: whether the
    whole file exists, the free bytes of the disk, and the size and hash of the part. Read a line {offset}, at which the
    part is cut, and the bytes from there on. Report {error}, empty if the file was received.
    """
    target = placed(folder)
    path = os.path.join(target, name)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with open(path + ".part", "ab+") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            report(json.dumps({"busy": True}))
            return 1
        done = os.path.isfile(path) and os.path.getsize(path) == size and hash_of(path) == sha256
        if done:
            os.unlink(path + ".part")
        report(json.dumps({"done": done, "free": shutil.disk_usage(target).free, "part_bytes": part.tell(),
                           "part_sha256": hash_of(path if done else path + ".part")}))
        if done:
            return 0
        error = append_stdin(part, size, json.loads(sys.stdin.buffer.readline().decode("utf-8"))["offset"])
        if not error and hash_of(path + ".part") != sha256:
            error = "the bytes that arrived are others than those that were sent"
            os.unlink(path + ".part")
        if not error:
            os.replace(path + ".part", path)
            handle = os.open(target, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    report(json.dumps({"error": error}))
    return 1 if error else 0


def append_stdin(part: BinaryIO, size: int, offset: int) -> str:
    """Cut the part at `offset` and append stdin until it has `size` bytes. Return the fault; empty if there is none."""
    stdin: Any = sys.stdin.buffer  # typed without its `read1`
    try:
        part.truncate(offset)
        left = size - offset
        while left:
            signal.alarm(SILENCE_S)  # ends this process, and its lock with it
            data = stdin.read1(min(left, BUFFER_BYTES))
            if not data:
                return "the connection ended"
            part.write(data)
            left -= len(data)
        part.flush()
        signal.alarm(0)
        os.fsync(part.fileno())
    except OSError as error:
        return "cannot write there: {}".format(error.strerror)
    return ""


def hash_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(BUFFER_BYTES), b""):
            digest.update(data)
    return digest.hexdigest()


def discard(paths: List[str]) -> int:
    """Remove files and empty folders of the cache, if they exist."""
    for path in map(placed, paths):
        with contextlib.suppress(OSError):
            (os.rmdir if os.path.isdir(path) else os.unlink)(path)
    report("true")
    return 0


REQUESTS: Dict[str, Callable[..., int]] = {
    "run": run, "interact": run, "receive": receive, "discard": discard}

if __name__ == "__main__":
    main()
