"""KV caches over one set of weights, in memory and on disk: prompts that share a prefix compute it once.

Requests share only prefixes of their own owner, because the number of cached tokens tells what others wrote. A request
gets the slot with which it shares the longest prefix, if its prompt extends that prefix or changes less than
half of it. Other requests get the least recently used slot, with a copy of the prefix that they share with any slot, so
that two chats with the same system message coexist. For a while a slot whose response was streamed is taken last: after
each answer a client may request a title, tags and follow-ups, which are not streamed. Background requests have a slot
of their own. On disk, a prefix that two separate conversations share is likely to come again: a thread of its own saves
it once a prefill has computed it, and it is loaded if no slot holds as much of a prompt.
"""
import collections
import hashlib
import os
import threading
import time
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

import numpy as np

from merino_runtime.api import LanguageModel
from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError
from merino_runtime.generation.cache_file import cached_ids, identity, load_cache, write_cache
from merino_runtime.generation.generate import common_prefix
from merino_runtime.io.board import MB
from merino_runtime.io.lock import others_may_write
from merino_runtime.serving.requests import GenerationRequest

WORTH_A_COPY = 16  # ids; computing fewer again is as fast
WATCHED_S = 900.0  # a chat is likely to continue within this time
LEAST = 64  # ids that are worth a file
ALIKE = 16  # ids; a prefix is saved only if it is longer than a saved one by more
RECENT = 32  # prompts that the next one is compared with
END = ".cache"


class Slot:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.busy = False
        self.owner = ""  # of the request that filled it
        self.watched = False
        self.used_s = 0.0

    def shared(self, request: GenerationRequest) -> int:
        """Return the length of the prefix that a request's prompt may use of this slot."""
        return common_prefix(self.ids, request.ids) if self.owner == request.client.owner else 0

    @property
    def ids(self) -> List[int]:
        return self.backend.ids


class Slots:
    """The slots of one model, used by one thread. count: slots for interactive requests; one more is for background
    requests."""

    def __init__(self, model: LanguageModel, count: int) -> None:
        self.model, self.count = model, count
        *persons, background = model.backend.rows(count + 1)
        self.persons, self.background = [Slot(backend) for backend in persons], [Slot(background)]
        model.backend.close()

    def take(self, request: GenerationRequest) -> Optional[Slot]:
        """Return a slot for a request and mark it busy; None if all are."""
        free = [slot for slot in (self.background if request.background else self.persons) if not slot.busy]
        if not free:
            return None
        slot = max(free, key=lambda candidate: candidate.shared(request))
        if not slot.ids or 2 * slot.shared(request) < len(slot.ids):  # it does not extend most of the slot's prefix
            slot = next((candidate for candidate in free if not candidate.ids), None) or min(free, key=_turn)
            if slot.owner != request.client.owner:
                slot.backend.truncate(0)
                slot.owner = request.client.owner
            self.copy_prefix(slot, request)
        slot.busy, slot.watched, slot.used_s = True, request.watched, time.monotonic()
        return slot

    def copy_prefix(self, slot: Slot, request: GenerationRequest) -> None:
        """Copy a prefix from the slot that shares the most with the prompt, busy or not."""
        others = [other for other in [*self.persons, *self.background] if other is not slot]
        source = max(others, key=lambda other: other.shared(request), default=None)
        if source is not None and source.shared(request) >= slot.shared(request) + WORTH_A_COPY:
            slot.backend.copy_prefix(source.backend, source.shared(request))

    def give(self, slot: Slot) -> None:
        slot.busy, slot.used_s = False, time.monotonic()

    def close(self) -> None:
        for slot in [*self.persons, *self.background]:
            slot.backend.close()


def _turn(slot: Slot) -> Tuple[bool, float]:
    """Order slots by when they are emptied, the smallest first."""
    return slot.watched and time.monotonic() - slot.used_s < WATCHED_S, slot.used_s


class PrefixCache:
    """The cache of one bundle, in a folder of its own. most_mb: size limit; the oldest files are deleted first."""

    def __init__(self, bundle: Bundle, folder: str, most_mb: float, say: Callable[[str], None]) -> None:
        self._bundle, self._most_mb, self._say = bundle, most_mb, say
        self._folder = os.path.join(folder, identity(bundle)[:16])
        self._kept: Dict[str, List[int]] = {}  # ids by path
        self._recent: Deque[Tuple[str, Tuple[int, ...]]] = collections.deque(maxlen=RECENT)  # with their owners
        self._saving: Optional[threading.Thread] = None
        self._read_folder()

    def _read_folder(self) -> None:
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)  # what people wrote is in these files
            status = os.stat(self._folder)
            if others_may_write(status) or status.st_mode & 0o077:  # their file would become the beginning of prompts
                raise OSError(f"other users may read or change {self._folder}")
            for name in sorted(os.listdir(self._folder)):
                path = os.path.join(self._folder, name)
                if name.endswith(END):
                    try:
                        self._kept[path] = cached_ids(self._bundle, path)
                    except MerinoError as error:
                        self._drop(path, str(error))
        except OSError as error:
            self._say(f"the prefix cache is off: {error}. Choose another --set cache_dir, or run chmod 700 on it.")
            self._most_mb = 0.0

    def _own(self, owner: str) -> Dict[str, List[int]]:
        """Return the ids of an owner's files, by path."""
        return {path: ids for path, ids in self._kept.items() if os.path.basename(path).rpartition("-")[0] == owner}

    def to_keep(self, ids: Tuple[int, ...], owner: str) -> int:
        """Return how many ids of a new prompt are a prefix that came before and is not saved yet; 0 for none."""
        common = [common_prefix(prompt, ids) for other, prompt in self._recent
                  if other == owner and common_prefix(prompt, ids) < len(prompt)]  # another chat
        self._recent.append((owner, ids))
        count = max(common, default=0)
        known = max((common_prefix(kept, ids) for kept in self._own(owner).values()), default=0)
        return count if self._most_mb and count >= max(LEAST, known + ALIKE) else 0

    def load(self, backend: Backend, ids: Sequence[int], owner: str) -> None:
        """Load a file into a slot's cache if it has more of the prompt."""
        own = self._own(owner)
        path = max(own, key=lambda name: common_prefix(own[name], ids), default=None)
        if path is None or common_prefix(own[path], ids) < common_prefix(backend.ids, ids) + LEAST:
            return
        try:
            load_cache(self._bundle, backend, path)
            os.utime(path, None)
        except (MerinoError, OSError) as error:
            self._drop(path, str(error))

    def save(self, backend: Backend, owner: str) -> None:
        """Save a copy of the slot's cache, in a thread. Do nothing while another one is being written."""
        if self._saving is not None and self._saving.is_alive():
            return
        ids, arrays = backend.filled()
        self._saving = threading.Thread(target=self._write, args=(ids, arrays, owner, backend.adapter),
                                        name="prefix cache")
        self._saving.start()

    def _write(self, ids: List[int], arrays: Dict[str, Any], owner: str, adapter: int) -> None:
        name = hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).hexdigest()[:16] + END
        path = os.path.join(self._folder, f"{owner}-{name}")
        try:
            write_cache(self._bundle, ids, arrays, path, adapter)
            self._kept = dict(self._kept, **{path: ids})  # another thread may be reading the old dict
            self._delete_oldest()
        except (MerinoError, OSError) as error:
            self._say(f"a prefix is not kept, and the prefix cache is off: {error}")
            self._most_mb = 0.0

    def _delete_oldest(self) -> None:
        by_age = sorted(self._kept, key=os.path.getmtime)
        size_mb = sum(os.path.getsize(path) for path in by_age) / MB
        while by_age and size_mb > self._most_mb:
            size_mb -= os.path.getsize(by_age[0]) / MB
            self._drop(by_age.pop(0))

    def _drop(self, path: str, why: str = "") -> None:
        if why:
            self._say(f"{why} It is deleted.")
        self._kept = {other: ids for other, ids in self._kept.items() if other != path}
        try:
            os.unlink(path)
        except OSError:
            self._most_mb = 0.0

    def close(self) -> None:
        """Wait for a file that is being written."""
        if self._saving is not None:
            self._saving.join()
