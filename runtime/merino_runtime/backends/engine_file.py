"""Engines on disk: one file per (GPU, compute capability, TensorRT version, model, precision, shapes).

An engine is machine code for one GPU and one version. So a file's header names everything that it was built for, and
the hash of the plan after it: a stale, damaged or foreign file is not loaded, and `engine_build` builds it again. The
files are in `engines` beside the bundle of an installed release, otherwise in the user's cache (docs/formats.md). A
file that another user could write is not loaded, nor one that came with a bundle.
"""
import contextlib
import hashlib
import json
import mmap
import os
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.lock import others_may_write, raising_machine_faults
from merino_runtime.io.outputs import open_output

MAGIC = b"merino-engine\n"
SCHEMA = 1
HEADER_BYTES = 4096  # the plan begins at a page
FOLDER, APP = "engines", "merino.pyz"  # in a release
SUFFIX = ".engine"
PRECISIONS = ("fp32", "fp16")
MODEL_FILES = ("model.onnx", "model.onnx.data")


class EngineKey(NamedTuple):
    """What an engine was built for. It runs nowhere else."""
    gpu: str
    capability: str  # compute capability, "5.3"
    tensorrt: str
    cuda: int  # 10020 is 10.2
    model_sha256: str  # of the graph's and its weights' hashes
    precision: str  # of the kernels: fp32, fp16
    context: int
    chunk: int  # ids of the prefill profile
    builder: str  # of `engine_build`'s source: another one may build another engine of the same model

    @property
    def file_name(self) -> str:
        facts = json.dumps(self._asdict(), sort_keys=True).encode("utf-8")
        return f"{hashlib.sha256(facts).hexdigest()[:24]}-{self.precision}{SUFFIX}"


def model_sha256(bundle: Bundle) -> str:
    """Return one hash of the files that the parser reads, from their hashes in bundle.json."""
    listed = sorted((file.path, file.sha256) for file in bundle.files if file.path in MODEL_FILES)
    return hashlib.sha256(json.dumps(listed).encode("utf-8")).hexdigest()


def engine_folder(bundle: Bundle) -> str:
    """Return the folder for new engines of this bundle: the first one of `_folders` that `install` made and this user
    may write, otherwise the user's cache, which is made if needed. Raise MerinoError if it cannot be made."""
    *beside, cache = _folders(bundle)
    for folder in beside:
        if os.path.isdir(folder) and os.access(folder, os.W_OK):
            return folder
    with raising_machine_faults(f"make {cache}"):
        os.makedirs(cache, 0o755, exist_ok=True)
    if others_may_write(os.stat(cache)):
        raise MerinoError(f"other users can write {cache}, so an engine in it could be theirs. Run chmod go-w on your "
                          "own folder, or set XDG_CACHE_HOME to another one.")
    return cache


def _folders(bundle: Bundle) -> List[str]:
    """Return the folders where engines may be, the preferred one first: that of the release to which the bundle and the
    running application belong, if they do, and the user's cache. Whoever could write engines into a release could have
    written its application. Beside another bundle, an engine may be from whoever made the bundle."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    release = os.path.dirname(os.path.realpath(bundle.folder))
    inside = os.path.realpath(__file__).startswith(os.path.join(release, APP, ""))
    return [os.path.join(release, FOLDER)] * inside + [os.path.join(cache, "merino", FOLDER)]


def paths_of(bundle: Bundle, key: EngineKey) -> List[str]:
    """Return the paths where such an engine may be, the preferred one first."""
    return [os.path.join(folder, key.file_name) for folder in _folders(bundle)]


@contextlib.contextmanager
def opened_plan(bundle: Bundle, key: EngineKey) -> Iterator[Tuple[str, Optional[memoryview]]]:
    """Yield the path of this key's engine and its plan, mapped; "" and None if there is no sound one."""
    with contextlib.ExitStack() as stack:
        for path in paths_of(bundle, key):
            plan = _mapped_plan(path, key, stack)
            if plan is not None:
                yield path, plan
                return
        yield "", None


def _mapped_plan(path: str, key: EngineKey, stack: contextlib.ExitStack) -> Optional[memoryview]:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a pipe ends
            if others_may_write(os.fstat(file.fileno())) or others_may_write(os.stat(os.path.dirname(path))):
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # absent, unreadable, or empty
        return None
    stack.callback(_close, mapped)
    with memoryview(mapped) as whole:
        plan = whole[HEADER_BYTES:]
    stack.callback(plan.release)
    return plan if mapped[:HEADER_BYTES] == _header(key, plan) else None


def _close(mapped: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):  # something still reads it, and frees it at its end
        mapped.close()


def _header(key: EngineKey, plan: Any) -> bytes:
    """Return the only header of a sound file with this plan, a buffer."""
    facts = {"schema": SCHEMA, "key": dict(key._asdict()), "plan_bytes": len(plan),
             "plan_sha256": hashlib.sha256(plan).hexdigest()}
    header = MAGIC + json.dumps(facts).encode("utf-8")
    assert len(header) <= HEADER_BYTES, "the names of a GPU and a version are short"
    return header.ljust(HEADER_BYTES, b"\0")


def keep_engine(bundle: Bundle, key: EngineKey, plan: Any) -> str:
    """Write the plan, a buffer, completely or not at all. Return its path. Engines of the same model and GPU in another
    precision are removed: the one that was requested last is the one that runs. Raise MerinoError if the disk rejects
    it."""
    path = os.path.join(engine_folder(bundle), key.file_name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # unsound, and a new file would keep its owner
    with open_output(path, size_bytes=HEADER_BYTES + len(plan)) as file:
        file.write(_header(key, plan))
        file.write(plan)
    os.chmod(path, os.stat(path).st_mode & 0o755)  # whatever the umask
    for other in PRECISIONS:
        if other != key.precision:
            for stale in paths_of(bundle, key._replace(precision=other)):
                with contextlib.suppress(OSError):
                    os.unlink(stale)
    return path
