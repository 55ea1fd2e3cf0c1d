"""Which host keys are trusted: those of known_hosts, and with `--accept-new` the key of a host of which none is known.

As ssh's StrictHostKeyChecking=accept-new: a host with another key than the known one is refused in any case.
"""

import shlex
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.public_key import get_default_certificate_algs, get_default_public_key_algs

from merino_edge.delivery.ssh.address import Address
from merino_edge.storage.atomic import make_parent
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import append_output

GLOBAL_FILES = (Path("/etc/ssh/ssh_known_hosts"),)


class HostKeys(asyncssh.SSHClient):
    """Judges the host's key of one connection; asyncssh calls it for a key that no file has."""

    def __init__(self, address: Address, files: list[Path], accept_new: bool) -> None:
        self.address, self.files, self.accept_new = address, files, accept_new
        self.known = False  # whether any key of the host, or of its authority, is known
        self.offered: asyncssh.SSHKey | None = None
        self.name = ""  # of the host, as known_hosts writes it

    def trusted(self, host: str, addr: str, port: int | None) -> Any:
        """Return the known keys of this host, for asyncssh's `known_hosts`."""
        self.name = f"[{host}]:{port}" if port else host
        keys = asyncssh.read_known_hosts([str(path) for path in self.files if path.is_file()]).match(host, addr, port)
        self.known = any(keys)
        return keys

    def kinds(self, host: str, port: int | None) -> list[str]:
        """Algorithms of host keys to request: those of the known keys first, as ssh does, then all others. Without the
        others, a host whose key is of another kind would hang up without a reason."""
        keys, authorities, *_ = self.trusted(host, "", port)
        first = [kind for key in keys for kind in key.sig_algorithms]
        algorithms = [*(get_default_certificate_algs() if authorities else ()), *first, *get_default_public_key_algs()]
        return [kind.decode("ascii") for kind in dict.fromkeys(algorithms)]

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.offered = key
        return self.accept_new and not self.known

    def keep(self, write: bool = True) -> str:
        """Write a new key into the first file, once the host has proved that it has it -> a line that reports it,
        empty if the key was known. write=False: the line reports what would be written. Raise MerinoError if it
        cannot be written."""
        if self.offered is None or self.known:
            return ""
        path = self.files[0]
        line = f"{self.address.text}: its host key {self.offered.get_fingerprint()} is new and"
        if not write:
            return f"{line} would be written into {path}"
        make_parent(path)
        append_output(str(path), f"{self.name} {self.offered.export_public_key().decode('ascii').strip()}\n")
        self.known = True
        return f"{line} now in {path}"

    def refusal(self) -> MerinoError:
        """Return why the host's key was not taken, and what to do."""
        host, path = self.address.text, self.files[0]
        print_of = f" {self.offered.get_fingerprint()}" if self.offered else ""
        if self.known:
            return MerinoError(
                f"{host}: the host key{print_of} is not the one in {path}: the board was set up anew, or something else"
                f" answers at its address. If it was set up anew, remove the old key: ssh-keygen -f"
                f" {shlex.quote(str(path))} -R {shlex.quote(self.name)}"
            )
        return MerinoError(
            f"{host}: the host key{print_of} is in no known_hosts file. Compare it with the board's (`ssh-keygen -lf"
            " /etc/ssh/ssh_host_ed25519_key.pub` there), then run this again with --accept-new"
        )


def known_hosts_files(config: Any) -> list[Path]:
    """Return the user's files, then the system's, of what asyncssh read from ~/.ssh/config. `none` there is an empty
    list, and does not switch the check off."""
    own = config.get("UserKnownHostsFile") or ["~/.ssh/known_hosts"]
    shared = [Path(text) for text in config.get("GlobalKnownHostsFile") or ()] or list(GLOBAL_FILES)
    return [*(Path(text).expanduser() for text in own), *shared]
