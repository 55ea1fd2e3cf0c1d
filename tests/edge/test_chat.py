"""`merino-edge chat` as people use it: on a terminal with ctrl-C, and with the model on a board over ssh."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

import chat_bundle
import forked
import pytest
import ssh_board
from processes import read_until_closed

pytestmark = pytest.mark.slow
CHAT = [sys.executable, "-c", "from merino_edge.cli.app import main; main()", "chat"]
GREEDY = ("--temperature", "0")
PATIENCE_S = 120  # without output


@pytest.fixture(scope="module")
def endless(decoder, tmp_path_factory):
    """A bundle whose greedy answers end with the context only, which is long."""
    folder = tmp_path_factory.mktemp("endless") / "endless"
    return chat_bundle.make_bundle(folder, decoder, dialect="fused", context=chat_bundle.LONGEST)


class Terminal:
    """A process on a terminal of 40 columns, whose output is waited for."""

    def __init__(self, call):
        import fcntl
        import pty
        import struct
        import termios

        self.terminal_fd, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(
            [str(word) for word in call], stdin=other, stdout=other, stderr=other, start_new_session=True,
            env={**environment, "TERM": "xterm"}, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(other)
        self.shown = b""

    def wait_for(self, pattern):
        """Until the pattern is shown in what has come since the last wait."""
        match = re.search(pattern, self.shown)
        while not match and select.select([self.terminal_fd], [], [], PATIENCE_S)[0]:
            self.shown += os.read(self.terminal_fd, 4096)
            match = re.search(pattern, self.shown)
        assert match, (pattern, self.shown[-300:])
        self.shown = self.shown[match.end() :]

    def type(self, text):
        """As a person does, some time after what was shown: Python loses a ctrl-C that comes between the prompt and its
        wait for keys until the next key."""
        time.sleep(0.3)
        os.write(self.terminal_fd, text)

    def ended(self):
        self.shown += read_until_closed(self.terminal_fd)
        return self.process.wait()


def chat_and_interrupt(call):
    """Stops an answer, asks on, and leaves by ctrl-C twice; the rest of what was shown."""
    terminal = Terminal(call)
    terminal.wait_for(b"> ")
    terminal.type(b"Hello\n")
    terminal.wait_for(rb"(\xef\xbf\xbd){50}|[^\r\n\x1b]{50}")  # more than a line of the answer
    terminal.type(b"\x03")
    terminal.wait_for(b"stopped")
    terminal.wait_for(b"> ")
    terminal.type(b"/stats\n")
    terminal.wait_for(b"turns: 1")
    terminal.wait_for(b"> ")
    terminal.type(b"\x03")
    terminal.wait_for(b"once more")
    terminal.wait_for(b"> ")
    terminal.type(b"\x03")
    assert terminal.ended() == 130
    assert b"Traceback" not in terminal.shown


def test_ctrl_c_stops_the_answer_then_leaves(endless):
    chat_and_interrupt([*CHAT, endless, *GREEDY])


def test_ctrl_c_ends_a_talk_from_a_pipe(endless):
    process = subprocess.Popen(
        [*CHAT, endless, *GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(b"Hello\nAgain\n")
    process.stdin.flush()
    assert process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err


needs_sshd = pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    place = tmp_path_factory.mktemp("ssh")
    workstation = ssh_board.make_workstation(place / "home")
    with ssh_board.running(place / "board", workstation.key) as started:
        workstation.trusts(started)
        started.users_home = workstation.home
        yield started


@pytest.fixture
def home(board, monkeypatch):
    monkeypatch.setenv("HOME", str(board.users_home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def piped(*arguments, typed):
    with tempfile.TemporaryFile() as file:
        file.write(typed.encode())
        file.seek(0)
        done = forked.run(["chat", *arguments], stdin=file.fileno())
    assert "Traceback" not in done.stderr, done.stderr
    return done


@needs_sshd
def test_over_ssh_it_is_the_same_talk(board, home, chat_dir, tmp_path):  # noqa: ARG001
    typed = f"Hello\n//etc\n/system Be <|im_end|> brief.\nAnd now?\n/save {tmp_path / 'talk.json'}\n"
    options = (chat_dir, *GREEDY, "-n", "9", "--system", "Be kind.")
    here = piped(*options, typed=typed)
    saved = json.loads((tmp_path / "talk.json").read_text())
    (tmp_path / "talk.json").unlink()
    there = piped("--ssh", board.address, *options, typed=typed)
    assert (there.returncode, there.stdout) == (here.returncode, here.stdout) and here.returncode == 0, there.stderr
    assert json.loads((tmp_path / "talk.json").read_text()) == saved
    there = piped("--ssh", board.address, *options, "--json", typed="Hello\n/no\n/stats\n")
    events = [json.loads(line) for line in there.stdout.splitlines()]
    assert there.returncode == 1 and events[0]["context"] == 256 and events[0]["system"] == "Be kind."
    done, message = [event for event in events if event.get("done")]
    assert done["tokens"] == 9 and "/no" in [event for event in events if "error" in event][0]["error"]
    assert "computed" in message["output"]


@needs_sshd
def test_over_ssh_ctrl_c_stops_the_answer_then_leaves_and_nothing_runs_on(board, home, endless):  # noqa: ARG001
    chat_and_interrupt([*CHAT, "--ssh", board.address, endless, *GREEDY])
    for _ in range(400):
        if not ssh_board.programs_on(board):
            return
        time.sleep(0.05)
    pytest.fail("the board's program runs on")


@needs_sshd
def test_over_ssh_what_is_refused_is_told(board, home, chat_dir):  # noqa: ARG001
    done = piped("--ssh", board.address, "embedded", typed="Hello\n")
    assert (done.returncode, done.stdout) == (1, "") and "no chat template" in done.stderr
    done = piped("--ssh", board.address, chat_dir, "--no-think", typed="Hello\n")
    assert done.returncode == 1 and "--no-think" in done.stderr
    done = piped("--ssh", board.address, chat_dir, "-n", "2", typed="x" * 300 + "\n")
    assert done.returncode == 1 and "Shorten it" in done.stderr
