"""Who may use the server: API keys, the addresses that need one, and web pages of other sites."""
import collections
import hmac
import math
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


def check_origin(headers: Dict[str, str], local: bool) -> None:
    """Raise RefusedError for a web page in a browser on this machine, which must not use a server without a key,
    be it by a request to this address or by a domain name that resolves to it. local: whether only this machine
    can connect."""
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    origin = headers.get("origin")
    if local and host and name.lower() not in LOCAL_NAMES:
        raise RefusedError(f"the name {name[:80]!r} is not this machine's own. Use localhost, or serve with "
                           "--api-key-file.", 403)
    if origin is not None and origin.partition("://")[2].lower() != host.lower():  # null: of a sandboxed frame
        raise RefusedError(f"pages of {origin[:80]!r} may not use this server. Serve with --api-key-file, and give "
                           "the page a key.", 403)


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

    def check(self, keys: Sequence[str], headers: Dict[str, str], client: str) -> None:
        """Raise RefusedError unless the headers have one of the keys, if there are any. client: its address."""
        if not keys:
            return
        address = client[:80]
        wait_s = self.wait_s(address)
        if wait_s:
            raise RefusedError("too many wrong API keys came from your address. Try again later.", 429,
                               code="too_many_wrong_keys", retry_s=wait_s)
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        sent = sent.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # All keys are compared, each in constant time, so that the time reveals none of them.
        if sum(hmac.compare_digest(sent.encode("utf-8", "replace"), key.encode("utf-8")) for key in keys) == 0:
            if sent:
                self.add(address)
            raise RefusedError("the API key is missing or wrong. Send it as `Authorization: Bearer KEY`.", 401,
                               code="invalid_api_key")
