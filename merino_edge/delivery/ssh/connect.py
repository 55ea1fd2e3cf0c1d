"""A connection to a board by asyncssh: the value of `--ssh`, host key, login by agent or key file, ~/.ssh/config.

This module bounds what a hostile or broken server can do: the time to log in, its requests (no agent, no X11, no
password), and the exceptions of asyncssh, which become a MerinoError of one line with the host's name. A host key must
be in a known_hosts file. `new_host_key` fetches that of a new host, for a command that asks about it.
"""

import asyncio
import contextlib
import logging
import os
import re
import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.public_key import get_default_certificate_algs, get_default_public_key_algs

from merino_edge.storage.atomic import make_parent
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import append_output
from merino_runtime.io.streams import visible

for _name in ("asyncssh", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)  # a server's words would reach the terminal as they are
LOGIN_S = 60.0
KEEPALIVE_S = 15.0  # and three unanswered: the board is gone
# asyncssh raises some of Python's own for bytes that no server of good will sends.
FAULTS = (asyncssh.Error, OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError)
GLOBAL_FILES = (Path("/etc/ssh/ssh_known_hosts"),)
FORM = (
    "[USER@]HOST[:PORT][/FOLDER], as pi@192.168.1.7, [fe80::1%eth0]:2222 with brackets for IPv6, or a Host of"
    " ~/.ssh/config; FOLDER: where the board keeps its releases"
)
_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s/]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[\w.-]+))"
    r"(?::(?P<port>[0-9]{1,18}))?(?P<root>/[^/\0-\x1f][^\0-\x1f]*)?"
)


@dataclass(frozen=True)
class Address:
    """The address of a board. user, port: None for the value of ~/.ssh/config, else this user's name and 22. root: the
    folder of releases there; None for the default of `install` for its user."""

    text: str  # as it was given, for messages
    host: str
    user: str | None = None
    port: int | None = None
    root: str | None = None


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
    return Address(text, host, user, port, match["root"] if match else None)


def parse_addresses(texts: Sequence[str]) -> list[Address]:
    """Raise MerinoError too where one is named twice: two installs on one board would wait for each other."""
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise MerinoError(f"--ssh {twice[0]} is given twice: give each board once")
    return [parse_address(text) for text in texts]


def known_hosts_files(config: Any) -> list[Path]:
    """Return the user's files, then the system's, of what asyncssh read from ~/.ssh/config. `none` there is an empty
    list, and does not switch the check off."""
    own = config.get("UserKnownHostsFile") or ["~/.ssh/known_hosts"]
    shared = [Path(text) for text in config.get("GlobalKnownHostsFile") or ()] or list(GLOBAL_FILES)
    return [*(Path(text).expanduser() for text in own), *shared]


def name_of(options: asyncssh.SSHClientConnectionOptions) -> str:
    """Return the host's name as known_hosts writes it."""
    host = options.host_key_alias or options.host
    return str(host) if options.port == asyncssh.DEFAULT_PORT else f"[{host}]:{options.port}"


def known_keys(options: asyncssh.SSHClientConnectionOptions) -> Sequence[Sequence[Any]]:
    """Return what the known_hosts files have for the host: keys, authorities, and others; all empty for a new host."""
    files = [str(path) for path in known_hosts_files(options.config) if path.is_file()]
    port = options.port if options.port != asyncssh.DEFAULT_PORT else None
    return asyncssh.read_known_hosts(files).match(options.host_key_alias or options.host, "", port)


def requested_kinds(options: asyncssh.SSHClientConnectionOptions) -> list[str]:
    """Return the algorithms of host keys to request: those of the known keys first, as ssh does, then all others.
    Without the others, a host whose key is of another kind would hang up without a reason."""
    keys, authorities, *_ = known_keys(options)
    first = [kind for key in keys for kind in key.sig_algorithms]
    algorithms = [*(get_default_certificate_algs() if authorities else ()), *first, *get_default_public_key_algs()]
    return [kind.decode("ascii") for kind in dict.fromkeys(algorithms)]


@dataclass(frozen=True)
class NewHostKey:
    """The key of a host that no known_hosts file names. `line`: as known_hosts has it."""

    fingerprint: str
    line: str
    known_hosts: Path

    def keep(self) -> None:
        """Write the key into known_hosts. Raise MerinoError if that fails."""
        make_parent(self.known_hosts)
        append_output(str(self.known_hosts), self.line)


async def new_host_key(address: Address) -> NewHostKey | None:
    """Fetch the key of a host that no known_hosts file names; None if one does, or if the host does not answer, which
    the connection then reports."""
    with contextlib.suppress(TimeoutError, *FAULTS):
        async with asyncio.timeout(LOGIN_S):
            options = await _options(address)
            if any(known_keys(options)):
                return None
            key = await asyncssh.get_server_host_key(address.host, address.port or (), options=options)
        if key:
            line = f"{name_of(options)} {key.export_public_key().decode('ascii').strip()}\n"
            return NewHostKey(key.get_fingerprint(), line, known_hosts_files(options.config)[0])
    return None


@dataclass(frozen=True)
class Board:
    """A connected board."""

    address: Address
    connection: asyncssh.SSHClientConnection


@contextlib.asynccontextmanager
async def connected(address: Address) -> AsyncIterator[Board]:
    """Raise MerinoError with the host's name where no connection comes about; it is closed at the end of the body."""
    connection = await _login(address)
    try:
        yield Board(address, connection)
    finally:
        connection.abort()


async def _login(address: Address) -> asyncssh.SSHClientConnection:
    try:
        async with asyncio.timeout(LOGIN_S):
            options = await _options(address)
            files = [str(path) for path in known_hosts_files(options.config) if path.is_file()]
            kinds = () if options.config.get("HostKeyAlgorithms") else requested_kinds(options)
            return await asyncssh.connect(
                address.host, address.port or (), options=options, known_hosts=files, server_host_key_algs=kinds
            )
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        is_unknown = "not trusted" in str(error) or "host key algorithm" in str(error)  # none of a known kind
        raise (host_key_refusal(address, options) if is_unknown else _fault(address, "log in", error)) from error
    except asyncssh.PermissionDenied as error:
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


def host_key_refusal(address: Address, options: asyncssh.SSHClientConnectionOptions) -> MerinoError:
    """Return why the host's key was not taken, and what to do."""
    if not any(known_keys(options)):
        return MerinoError(
            f"{address.text}: its host key is in no known_hosts file. Run this in a terminal, where you are shown the"
            " key and asked, or log in once by ssh"
        )
    path = known_hosts_files(options.config)[0]
    return MerinoError(
        f"{address.text}: its host key is not the one in {path}: the board was set up anew, or something else answers"
        " at its address. If it was set up anew, remove the old key: ssh-keygen -f"
        f" {shlex.quote(str(path))} -R {shlex.quote(name_of(options))}"
    )


async def _options(address: Address) -> asyncssh.SSHClientConnectionOptions:
    """Those of ~/.ssh/config, without forwarding, passwords and environment, which no board needs."""
    options = {key: value for key, value in (("username", address.user), ("port", address.port)) if value is not None}
    return await asyncssh.SSHClientConnectionOptions.construct(
        config=(), host=address.host, agent_forwarding=False, x11_forwarding=False, password_auth=False,
        kbdint_auth=False, host_based_auth=False, gss_kex=False, gss_auth=False, request_pty=False,
        env=(), send_env=(), compression_algs=None, keepalive_interval=KEEPALIVE_S, keepalive_count_max=3,
        connect_timeout=None, **options,
    )  # fmt: skip


@contextlib.contextmanager
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
