"""A connection to a board by asyncssh: the value of `--ssh`, host key, login by agent or key file, ~/.ssh/config.

This module bounds what a hostile or broken server can do: the time to log in, its requests (no agent, no X11, no
password), and the exceptions of asyncssh, which become a MerinoError of one line with the host's name. Host keys are
trusted as ssh's StrictHostKeyChecking=accept-new does: with `--accept-new` the key of a host of which none is known;
a host with another key than the known one is refused in any case.
"""

import asyncio
import logging
import os
import re
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.public_key import get_default_certificate_algs, get_default_public_key_algs

from merino_edge.storage.atomic import make_parent
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import append_output
from merino_runtime.io.visible import visible

LOGIN_S = 60.0
KEEPALIVE_S = 15.0  # and three unanswered: the board is gone
# asyncssh raises some of Python's own for bytes that no server of good will sends.
FAULTS = (asyncssh.Error, OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError)
GLOBAL_FILES = (Path("/etc/ssh/ssh_known_hosts"),)
FORM = "[USER@]HOST[:PORT], as pi@192.168.1.7, [fe80::1%eth0]:2222 with brackets for IPv6, or a Host of ~/.ssh/config"
_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s/][^@\s]*)@)?(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[\w.-]+))"
    r"(?::(?P<port>[0-9]{1,18}))?"
)


@dataclass(frozen=True)
class Address:
    """The address of a board. user, port: None for the value of ~/.ssh/config, else this user's name and 22."""

    text: str  # as it was given, for messages
    host: str
    user: str | None = None
    port: int | None = None


def parse_address(text: str) -> Address:
    """Raise MerinoError if it is not of that form."""
    match = _ADDRESS.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    host = (match["six"] or match["host"]) if match else ""
    user = match["user"] if match else None
    if port is not None and not 0 < port < 65536:
        raise MerinoError(f"--ssh {visible(text)!r}: no host has a port {port}, allowed: 1 to 65535")
    if not host or host.startswith("-") or (user or "").startswith("-"):
        raise MerinoError(f"--ssh {visible(text)!r} names no host: write {FORM}")
    return Address(text, host, user, port)


def parse_addresses(texts: list[str]) -> list[Address]:
    """Raise MerinoError too where one is named twice: two installs on one board would wait for each other."""
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise MerinoError(f"--ssh {twice[0]} is given twice: give each board once")
    return [parse_address(text) for text in texts]


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


@dataclass(frozen=True)
class Board:
    """A connected board."""

    address: Address
    connection: asyncssh.SSHClientConnection


@asynccontextmanager
async def connected(
    address: Address, accept_new: bool = False, say: Callable[[str], None] = lambda _: None, keep_key: bool = True
) -> AsyncIterator[Board]:
    """Raise MerinoError with the host's name where no connection comes about; it is closed at the end of the body.
    keep_key: a new host key that is accepted is written into known_hosts."""
    for name in ("asyncssh", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # a server's words would reach the terminal as they are
    connection = await _login(address, accept_new, say, keep_key)
    try:
        yield Board(address, connection)
    finally:
        connection.abort()


async def _login(
    address: Address, accept_new: bool, say: Callable[[str], None], keep_key: bool
) -> asyncssh.SSHClientConnection:
    keys: HostKeys | None = None
    try:
        async with asyncio.timeout(LOGIN_S):
            options = await _options(address)
            keys = HostKeys(address, known_hosts_files(options.config), accept_new)
            judge = keys
            port = options.port if options.port != asyncssh.DEFAULT_PORT else None
            kinds = keys.kinds(options.host_key_alias or options.host, port)
            connection = await asyncssh.connect(
                address.host, address.port or (), options=options, client_factory=lambda: judge,
                known_hosts=judge.trusted,
                server_host_key_algs=() if options.config.get("HostKeyAlgorithms") else kinds,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        raise (keys.refusal() if keys and "not trusted" in str(error) else _fault(address, "log in", error)) from error
    except asyncssh.KeyExchangeFailed as error:
        known = keys is not None and keys.known and not keys.offered  # no key of a kind that is known was offered
        raise (keys.refusal() if keys and known else _fault(address, "log in", error)) from error
    except asyncssh.PermissionDenied as error:
        if keys and (line := keys.keep(keep_key)):
            say(line)
        user = f"{address.user}@" if address.user else ""
        raise MerinoError(
            f"{address.text}: no key of yours is accepted there. Passwords are not asked for: copy your key to the"
            f" board (`ssh-copy-id {user}{address.host}`), or load it into the agent (`ssh-add`)"
        ) from error
    except TimeoutError as error:
        raise MerinoError(
            f"{address.text}: no login within {LOGIN_S:g} s. Check that it is up, at that address"
        ) from error
    except FAULTS as error:
        raise _fault(address, "log in", error) from error
    if line := keys.keep(keep_key):
        say(line)
    return connection


async def _options(address: Address) -> asyncssh.SSHClientConnectionOptions:
    """Those of ~/.ssh/config, without forwarding, passwords and environment, which no board needs."""
    options = {key: value for key, value in (("username", address.user), ("port", address.port)) if value is not None}
    return await asyncssh.SSHClientConnectionOptions.construct(
        config=(), host=address.host, agent_forwarding=False, x11_forwarding=False, password_auth=False,
        kbdint_auth=False, host_based_auth=False, gss_kex=False, gss_auth=False, request_pty=False,
        env=(), send_env=(), compression_algs=None, keepalive_interval=KEEPALIVE_S, keepalive_count_max=3,
        connect_timeout=None, **options,
    )  # fmt: skip


@contextmanager
def reported_faults(address: Address, doing: str) -> Iterator[None]:
    """An error of the connection becomes a MerinoError: `doing` completes "HOST: cannot ..."."""
    try:
        yield
    except TimeoutError as error:
        raise MerinoError(
            f"{address.text}: the board took too long to {doing}: check that it is up, and not too busy"
        ) from error
    except FAULTS as error:
        raise _fault(address, doing, error) from error


def _fault(address: Address, doing: str, error: BaseException) -> MerinoError:
    if isinstance(error, OSError) and not isinstance(error, asyncssh.Error):
        # asyncio's own text for a refused connection does not mention the refusal.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    else:
        reason = getattr(error, "reason", "") or str(error) or type(error).__name__
    return MerinoError(f"{address.text}: cannot {doing}: {visible(str(reason))}. Check that it is up and reachable")
