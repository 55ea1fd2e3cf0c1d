"""A process on a terminal of a given width: what a user sees. Runs on Python 3.6."""
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios


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
