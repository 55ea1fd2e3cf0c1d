"""Wrong API keys: a log line for each, and a pause for an address that sent too many."""
import collections
import math
import time
from typing import Tuple

from merino_runtime.io.streams import say

MOST = 10  # wrong keys before the pause
PAUSE_S = 60.0  # after the latest wrong key; then its address may send MOST again
MOST_ADDRESSES = 1024  # that are remembered


class WrongKeys:
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
