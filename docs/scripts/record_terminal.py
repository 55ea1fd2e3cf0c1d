"""Records a command on a terminal of 100 columns: `python docs/scripts/record_terminal.py FILE.cast COMMAND...`

The file is an asciicast of version 2: a header, then a line per output, with the second at which it came. The header
keeps the commit. `terminal.py` draws the picture of it."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from merino_edge.storage.atomic import write_text

ROOT = Path(__file__).resolve().parents[2]
COLUMNS, ROWS = 100, 30


def output_of(command: list[str]) -> list[tuple[float, str]]:
    """(second, text) of each output of a command that ran without an error."""
    reader, tty = pty.openpty()
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    began, events = time.monotonic(), []
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=tty, stderr=tty, env=environment, cwd=ROOT)
    os.close(tty)
    while True:
        try:
            chunk = os.read(reader, 1 << 16)
        except OSError:  # Linux: the other end was closed
            break
        if not chunk:
            break
        text = chunk.decode("utf-8", "replace").replace(str(Path.home()), "~")
        events.append((round(time.monotonic() - began, 3), text))
    if child.wait():
        sys.exit(f"{command[0]} ended with exit code {child.returncode}")
    return events


def main() -> None:
    path, *command = sys.argv[1:]
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "command": " ".join(command), "commit": commit}
    lines = [header, *([second, "o", text] for second, text in output_of(command))]
    write_text(Path(path), "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
