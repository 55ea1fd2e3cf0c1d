"""A connection to a board by asyncssh: host key, login by agent or key file, ~/.ssh/config; every fault in one line.

This module bounds what a hostile or broken server can do: the time to log in, its requests (no agent, no X11, no
password), and the exceptions of asyncssh, which become a MerinoError with the host's name.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import asyncssh

from merino_edge.delivery.ssh.address import Address
from merino_edge.delivery.ssh.known_hosts import HostKeys, known_hosts_files
from merino_runtime.errors import MerinoError
from merino_runtime.io.visible import visible

LOGIN_S = 60.0
KEEPALIVE_S = 15.0  # and three unanswered: the board is gone
# asyncssh raises some of Python's own for bytes that no server of good will sends.
FAULTS = (asyncssh.Error, OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, AssertionError)


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
        if keys:
            _say(say, keys.keep(keep_key))
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
    _say(say, keys.keep(keep_key))
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


def _say(say: Callable[[str], None], line: str) -> None:
    if line:
        say(line)
