"""A process that cannot outlive its test: in a group of its own, which is killed at the end. Runs on Python 3.6."""
import contextlib
import os
import signal
import subprocess

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
