"""The value of `--ssh`: [USER@]HOST[:PORT], the host a name, an alias of ~/.ssh/config, or an address."""

import re
from dataclasses import dataclass

from merino_runtime.errors import MerinoError
from merino_runtime.io.visible import visible

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
