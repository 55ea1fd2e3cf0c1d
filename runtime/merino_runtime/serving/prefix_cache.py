"""A disk cache of prefixes that prompts share: a system message is computed once, even across restarts.

A prefix that two separate conversations share is likely to come again. A thread of its own saves it once a prefill has
computed it. It is loaded if no slot holds as much of a prompt.
"""
import collections
import hashlib
import os
import threading
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

import numpy as np

from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError
from merino_runtime.generation.cache_file import cached_ids, identity, load_cache, write_cache
from merino_runtime.io.board import MB
from merino_runtime.io.owner import check_own
from merino_runtime.serving.slots import shared

LEAST = 64  # ids that are worth a file
ALIKE = 16  # ids; a prefix is saved only if it is longer than a saved one by more
RECENT = 32  # prompts that the next one is compared with
END = ".cache"


class PrefixCache:
    """The cache of one bundle, in a folder of its own. most_mb: size limit; the oldest files are deleted first."""

    def __init__(self, bundle: Bundle, folder: str, most_mb: float, say: Callable[[str], None]) -> None:
        self._bundle, self._most_mb, self._say = bundle, most_mb, say
        self._folder = os.path.join(folder, identity(bundle)[:16])
        self._kept: Dict[str, List[int]] = {}  # ids by path
        self._recent: Deque[Tuple[int, ...]] = collections.deque(maxlen=RECENT)
        self._saving: Optional[threading.Thread] = None
        self._read_folder()

    def _read_folder(self) -> None:
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)  # what people wrote is in these files
            check_own(self._folder)  # another user's file would become the beginning of prompts
            for name in sorted(os.listdir(self._folder)):
                path = os.path.join(self._folder, name)
                if name.endswith(END):
                    self._read_file(path)
        except OSError as error:
            self._say(f"the prefix cache is off: {error}. Choose another --cache-dir, or run chmod 700 on it.")
            self._most_mb = 0.0

    def _read_file(self, path: str) -> None:
        try:
            self._kept[path] = cached_ids(self._bundle, path)
        except MerinoError as error:
            self._drop(path, str(error))

    def to_keep(self, ids: Tuple[int, ...]) -> int:
        """Return how many ids of a new prompt are a prefix that came before and is not saved yet; 0 for none."""
        common = [shared(prompt, ids) for prompt in self._recent if shared(prompt, ids) < len(prompt)]  # another chat
        self._recent.append(ids)
        count = max(common, default=0)
        known = max((shared(kept, ids) for kept in self._kept.values()), default=0)
        return count if self._most_mb and count >= max(LEAST, known + ALIKE) else 0

    def load(self, backend: Backend, ids: Sequence[int]) -> None:
        """Load a file into a slot's cache if it has more of the prompt."""
        path = max(self._kept, key=lambda name: shared(self._kept[name], ids), default=None)
        if path is None or shared(self._kept[path], ids) < shared(backend.ids, ids) + LEAST:
            return
        try:
            load_cache(self._bundle, backend, path)
            os.utime(path, None)
        except (MerinoError, OSError) as error:
            self._drop(path, str(error))

    def save(self, backend: Backend) -> None:
        """Save a copy of the slot's cache, in a thread. Do nothing while another one is being written."""
        if self._saving is not None and self._saving.is_alive():
            return
        ids, arrays = backend.filled()
        self._saving = threading.Thread(target=self._write, args=(ids, arrays), name="prefix cache")
        self._saving.start()

    def _write(self, ids: List[int], arrays: Dict[str, Any]) -> None:
        name = hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).hexdigest()[:16] + END
        path = os.path.join(self._folder, name)
        try:
            write_cache(self._bundle, ids, arrays, path)
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
