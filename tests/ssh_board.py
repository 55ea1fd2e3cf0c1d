"""A board for tests over ssh: OpenSSH's sshd on loopback, whose user has a home of its own; and who logs in to it."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest
from served import free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
REASON = "no sshd here: apt-get install openssh-server"


@dataclass
class SshBoard:
    """A running sshd. `home` is the home of who logs in there; `log` what sshd says."""

    process: subprocess.Popen
    port: int
    home: Path
    host_key: asyncssh.SSHKey
    log: Path

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def cache(self):
        return self.home / ".cache" / "merino"

    @property
    def known_hosts_line(self):
        return f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode()}"

    def cut(self):
        """Kills what serves the connections that there are, and not the listener."""
        for child in children_of(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def children_of(pid):
    """Their processes, and in turn theirs, the nearest first."""
    results = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                results.append(int(folder.name))
    return [*results, *(inner for child in results for inner in children_of(child))]


def programs_on(board):
    """Command lines of our programs that run on the board."""
    results = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{board.cache}/apps".encode() in path.read_bytes():
                results.append(path)
    return results


@contextlib.contextmanager
def running(folder, login_key, path=None, more="", inside="", home=None, keys=None):
    """An sshd with a host key of its own that lets `login_key` in. path: PATH there, that of this Python first.
    inside: shell commands that run before it in a mount namespace of its own, in `folder`. home, keys: where HOME and
    authorized_keys are there."""
    home = home or folder / "board-home"
    if not inside:
        home.mkdir(parents=True)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    host_key.write_private_key(folder / "host_key")
    (folder / "host_key").chmod(0o600)
    (folder / "authorized_keys").write_bytes(login_key.export_public_key())
    path = path or f"{Path(sys.executable).parent}:/usr/bin:/bin"
    port, log, keys = free_port(), folder / "sshd.log", keys or folder / "authorized_keys"
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {keys}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin prohibit-password\nMaxStartups 100\nSetEnv HOME={home} PATH={path}"
        f" PYTHONPATH= OMP_NUM_THREADS=1\n{more}\n"
    )
    with contextlib.suppress(OSError):
        Path("/run/sshd").mkdir(exist_ok=True)
    command = [SSHD, "-D", "-E", str(log), "-f", str(folder / "sshd_config")]
    if inside:
        command = ["unshare", "-m", "sh", "-ec", f"{inside}\nexec {shlex.join(command)}"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder)
    board = SshBoard(process, port, home, host_key, log)
    try:
        wait_until_it_listens(board)
        yield board
    finally:
        board.cut()
        process.terminate()
        process.wait()


def wait_until_it_listens(board):
    for _ in range(200):
        assert board.process.poll() is None, board.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", board.port), 1):
            return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")


@dataclass
class Workstation:
    """The home of who connects: its key, its known_hosts."""

    home: Path
    key: asyncssh.SSHKey

    @property
    def known_hosts(self):
        return self.home / ".ssh" / "known_hosts"

    def trusts(self, *boards):
        self.known_hosts.write_text("".join(board.known_hosts_line for board in boards))


def make_workstation(folder):
    """A home with a key; the caller makes it $HOME."""
    (folder / ".ssh").mkdir(parents=True)
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / ".ssh" / "id_ed25519")
    (folder / ".ssh" / "id_ed25519").chmod(0o600)
    return Workstation(folder, key)
