"""Who may use the server: API keys, the addresses that need one, and web pages of other sites."""
import collections
import hashlib
import hmac
import ipaddress
import math
import re
import time
from typing import Dict, Optional, Sequence, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_text
from merino_runtime.io.streams import say
from merino_runtime.serving.requests import RefusedError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
LEAST_KEY = 8  # characters
MOST = 10  # wrong keys before the pause
PAUSE_S = 60.0  # after the latest wrong key; then its address may send MOST again
MOST_ADDRESSES = 1024  # that are remembered


def keys_of(path: Optional[str]) -> Tuple[str, ...]:
    if path is None:
        return ()
    lines = [line.strip() for line in read_text(path, "a file of API keys", "Write one key per line into it.", 2 ** 16)
             .splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or min(map(len, keys)) < LEAST_KEY:
        raise MerinoError(f"{path} must have API keys of at least {LEAST_KEY} characters, one per line. Make one: "
                          f"python3 -I -c 'import secrets; print(secrets.token_urlsafe())' > {path}")
    return keys


def check_address(host: str, keys: Sequence[str]) -> None:
    """Raise MerinoError for an address that other machines reach, if there is no key."""
    if host not in LOCAL_HOSTS and not keys:
        raise MerinoError(
            f"--host {host} lets everyone who reaches this machine use the model. Give the clients a key: "
            "python3 -I -c 'import secrets; print(secrets.token_urlsafe())' > key.txt && chmod 600 key.txt, then add "
            "--api-key-file key.txt. Without --host only programs on this machine reach it.")


def origins_of(text: Optional[str]) -> Tuple[str, ...]:
    """Return the origins of --allow-origin. Raise MerinoError for what is none."""
    origins = tuple(origin.strip().lower() for origin in (text or "").split(",") if origin.strip())
    for origin in origins:
        if origin not in ("*", "null") and not re.match(r"[a-z][a-z0-9+.-]*://[^/\s]+\Z", origin):
            raise MerinoError(f"--allow-origin has {origin[:80]!r}, allowed: origins such as https://ui.example or "
                              "http://localhost:3000, without a path, or * for all web pages.")
    return origins


def cors_of(headers: Dict[str, str], origins: Sequence[str]) -> Tuple[Tuple[str, str], ...]:
    """Return the headers with which a browser lets the page of an allowed origin read the response; none for others."""
    origin = headers.get("origin", "")
    if not origin or not {"*", origin.lower()} & set(origins):
        return ()
    preflight = (("Access-Control-Allow-Methods", "GET, POST, OPTIONS"), ("Access-Control-Max-Age", "600"),
                 ("Access-Control-Allow-Headers", headers.get("access-control-request-headers", "*")),
                 ("Access-Control-Allow-Private-Network", "true"))  # a page of the internet, a server at home
    return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"),
            ("Access-Control-Expose-Headers", "Retry-After"),
            *(preflight if "access-control-request-method" in headers else ()))


def check_origin(headers: Dict[str, str], local: bool, allowed: bool = False) -> None:
    """Raise RefusedError for a web page in a browser on this machine, which must not use a server without a key,
    be it by a request to this address or by a domain name that resolves to it. local: whether only this machine
    can connect. allowed: whether the page's origin is."""
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    origin = headers.get("origin")
    if local and host and name.lower() not in LOCAL_NAMES:
        raise RefusedError(f"the name {name[:80]!r} is not this machine's own. Use localhost, or serve with "
                           "--api-key-file.", 403)
    # "null" is the origin of a sandboxed frame.
    if not allowed and origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise foreign_page(origin)


def foreign_page(origin: str) -> RefusedError:
    return RefusedError(f"pages of {origin[:80]!r} may not use this server. Serve with --allow-origin {origin[:80]}.",
                        403)


def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:80]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.exploded[:19]
    return address


class WrongKeys:
    """Counts wrong API keys by address: a log line for each, and a pause for an address that sent too many."""

    def __init__(self) -> None:
        # By address: the number of wrong keys, and the end of the pause.
        self._counts: "collections.OrderedDict[str, Tuple[int, float]]" = collections.OrderedDict()

    def wait_s(self, address: str) -> int:
        """Return the seconds until keys from this address are compared again; 0: now."""
        count, end = self._counts.get(address, (0, 0.0))
        return max(0, math.ceil(end - time.monotonic())) if count >= MOST else 0

    def add(self, address: str) -> None:
        now = time.monotonic()
        count, end = self._counts.pop(address, (0, 0.0))
        count = count + 1 if end > now else 1
        self._counts[address] = count, now + PAUSE_S
        if len(self._counts) > MOST_ADDRESSES:
            self._counts.popitem(last=False)
        say(f"wrong API key from {address!r}" + f": all its keys are refused for {PAUSE_S:g} s" * (count == MOST))

    def check(self, keys: Sequence[str], headers: Dict[str, str], address: str) -> str:
        """Return a name of the key in the headers, "" if the server has no keys. Raise RefusedError for a wrong one."""
        if not keys:
            return ""
        wait_s = self.wait_s(address)
        if wait_s:
            raise RefusedError("too many wrong API keys came from your address. Try again later.", 429,
                               code="too_many_wrong_keys", retry_s=wait_s)
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        sent = sent.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # All keys are compared, each in constant time, so that the time reveals none of them.
        found = [key for key in keys if hmac.compare_digest(sent.encode("utf-8", "replace"), key.encode("utf-8"))]
        if not found:
            if sent:
                self.add(address)
            raise RefusedError("the API key is missing or wrong. Send it as `Authorization: Bearer KEY`.", 401,
                               code="invalid_api_key")
        return hashlib.sha256(found[0].encode("utf-8")).hexdigest()[:16]
