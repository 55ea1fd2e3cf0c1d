"""Records a command on a terminal: `python docs/scripts/terminal.py FILE.cast COMMAND...`, and draws such a file as an
animated SVG, in which each line appears when it came and older ones scroll.

The file is an asciicast of version 2: a header, which keeps the commit, then a line per output, with the second at
which it came. Waiting is cut to PAUSE_S. The motion is CSS and needs no script; with `prefers-reduced-motion` it stands
at its end."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from html import escape
from pathlib import Path

from merino_edge.storage.atomic import write_text

COLUMNS, ROWS = 104, 22
ADVANCE, LINE, MARGIN = 8, 17, 14  # of a character of 13 pixels; the font may differ, so lines have a textLength
PAUSE_S, LAST_S, LEAST_S = 1.5, 8.0, 0.12
FIRST_S = 3.0  # the end is shown this long before the first run, so that the picture does not begin empty
DIM = ("no interval", "   exporting", "   removing", "in /", "in ~", "exporter", "shape:", "[low", "block's layers")

STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
text { fill: #d6deeb; white-space: pre }
.h { fill: #7fdbca; font-weight: bold }
.p { fill: #c3e88d; font-weight: bold }
.d { fill: #7c8ba1 }
.n { fill: #ffcb6b }
@media (prefers-reduced-motion: reduce) { * { animation: none !important } }
"""


def lines_of(cast: str) -> list[tuple[float, str]]:
    """(second, line) of each line of the run, when its first character came; long lines are cut into several."""
    header, *events = (json.loads(line) for line in cast.splitlines())
    lines = [(0.0, f"$ {header['command']}")]
    text, began = "", None
    for second, _, more in events:
        for character in more.replace("\r\n", "\n"):
            began = second if began is None else began
            if character != "\n":
                text += character
                continue
            lines += [(began, part) for part in folded(text.rstrip())]
            text, began = "", None
    return lines


def folded(line: str) -> list[str]:
    """At blanks, into lines of COLUMNS at most."""
    parts = []
    while len(line) > COLUMNS:
        end = line.rfind(" ", 0, COLUMNS + 1)
        end = end if end > 0 else COLUMNS
        parts.append(line[:end])
        line = line[end:].lstrip()
    return [*parts, line]


def shown_at(lines: list[tuple[float, str]]) -> list[float]:
    """The second of the animation at which each line is there."""
    now, times = 0.6, [0.6]
    for (before, _), (came, _) in zip(lines, lines[1:], strict=False):
        now += min(max(came - before, LEAST_S), PAUSE_S)
        times.append(round(now, 2))
    return times


def style_of(line: str) -> str:
    if line.startswith("$ "):
        return "p"
    if line.startswith("=="):
        return "h"
    if line.startswith(DIM):
        return "d"
    return "n" if "x [" in line or line.startswith("decode latency") else ""


def drawn(cast: str) -> str:
    lines = lines_of(cast)
    times = shown_at(lines)
    whole = times[-1] + LAST_S
    width, height = COLUMNS * ADVANCE + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    frames = [f"0% {{ opacity: 0 }} {100 * at / whole:.2f}% {{ opacity: 0 }}" for at in times]
    rules = [
        f"@keyframes l{index} {{ {frame} {100 * (at + 0.01) / whole:.2f}%, 100% {{ opacity: 1 }} }}"
        f" #l{index} {{ animation: l{index} {whole:.2f}s {FIRST_S - whole:.2f}s step-end infinite }}"
        for index, (frame, at) in enumerate(zip(frames, times, strict=True))
    ]
    last = -(max(len(lines) - ROWS, 0)) * LINE
    steps = [
        f"{100 * at / whole:.2f}% {{ transform: translateY({-(index + 1 - ROWS) * LINE}px) }}"
        for index, at in enumerate(times) if index >= ROWS
    ]
    steps += [f"100% {{ transform: translateY({last}px) }}"]
    rules.append(f"@keyframes up {{ 0% {{ transform: none }} {' '.join(steps)} }}")
    moving = f"animation: up {whole:.2f}s {FIRST_S - whole:.2f}s step-end infinite"
    rules.append(f"#up {{ transform: translateY({last}px); {moving} }}")
    texts = [text_of(index, line) for index, (_, line) in enumerate(lines) if line]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{STYLE}{chr(10).join(rules)}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#101828"/>',
        f'<svg x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN}" height="{height - 2 * MARGIN}"><g id="up">',
        *texts, "</g></svg></svg>", "",
    ])  # fmt: skip


def text_of(index: int, line: str) -> str:
    style = style_of(line)
    kind = f' class="{style}"' if style else ""
    return (
        f'<text id="l{index}" y="{index * LINE + 13}" textLength="{len(line) * ADVANCE}"'
        f' lengthAdjust="spacingAndGlyphs" xml:space="preserve"{kind}>{escape(line)}</text>'
    )


def text(path: Path) -> str:
    return drawn(path.read_text(encoding="utf-8"))


ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 100, 30  # of the terminal, in characters


def output_of(command: list[str]) -> list[tuple[float, str]]:
    """(second, text) of each output of a command that ran without an error."""
    reader, tty = pty.openpty()
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
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
    header = {"version": 2, "width": WIDTH, "height": HEIGHT, "command": " ".join(command), "commit": commit}
    lines = [header, *([second, "o", text] for second, text in output_of(command))]
    write_text(Path(path), "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
