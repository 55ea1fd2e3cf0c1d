"""Engines on disk: one file per (GPU, compute capability, TensorRT version, model, precision, shapes).

An engine is machine code of one GPU and one version. So a file's header names all that it was built for, and the hash
of the plan behind it: what is stale, damaged or foreign is not loaded, and `engine_build` builds it again. The files
lie in `engines`, beside the bundle of an installed release, else in the user's cache (docs/formats.md). Neither a file
that another user could write is loaded, nor one that came with a bundle.
"""
import contextlib
import hashlib
import json
import mmap
import os
import stat
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.lock import locked
from merino_runtime.io.machine_faults import machine_fault
from merino_runtime.io.outputs import open_output, write_output

MAGIC = b"merino-engine\n"
SCHEMA = 1
HEADER_BYTES = 4096  # the plan begins at a page
FOLDER, APP = "engines", "merino.pyz"  # in a release
SUFFIX = ".engine"
PRECISIONS = ("fp32", "fp16")
MODEL_FILES = ("model.onnx", "model.onnx.data")
WAIT_S = 7200.0  # for another builder: a Jetson Nano builds a large model for a quarter of an hour and more


class EngineKey(NamedTuple):
    """What an engine is for. It runs nowhere else."""
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
    """One hash of the files that the parser reads, from those that bundle.json lists."""
    listed = sorted((file.path, file.sha256) for file in bundle.files if file.path in MODEL_FILES)
    return hashlib.sha256(json.dumps(listed).encode("utf-8")).hexdigest()


def engine_folder(bundle: Bundle) -> str:
    """Where engines of this bundle are kept, made where it is not there yet: beside the bundle where `install` made
    the folder and this user may write to it, else in the user's cache. Raises MerinoError where it cannot be made."""
    beside = _folder_beside(bundle)
    if beside and os.path.isdir(beside) and os.access(beside, os.W_OK):
        return beside
    cache = _users_folder()
    try:
        os.makedirs(cache, 0o755, exist_ok=True)
    except OSError as error:
        raise machine_fault(f"make {cache}", error) from error
    if not _is_own(os.stat(cache)):
        raise MerinoError(f"other users can write {cache}, so an engine in it could be theirs. Run chmod go-w on your "
                          "own folder, or set XDG_CACHE_HOME to another one.")
    return cache


def _folder_beside(bundle: Bundle) -> Optional[str]:
    """The folder of engines in the release to which the bundle and the running application belong; else None. Whoever
    could write engines into such a folder could have written the application. Beside another bundle, an engine may be
    from whoever made the bundle."""
    release = os.path.dirname(os.path.realpath(bundle.folder))
    inside = os.path.realpath(__file__).startswith(os.path.join(release, APP, ""))
    return os.path.join(release, FOLDER) if inside else None


def _users_folder() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "merino", FOLDER)


def paths_of(bundle: Bundle, key: EngineKey) -> List[str]:
    """Where such an engine may lie, the first choice first."""
    return [os.path.join(folder, key.file_name) for folder in (_folder_beside(bundle), _users_folder()) if folder]


def sound_path(bundle: Bundle, key: EngineKey) -> Optional[str]:
    """The path of this key's engine; None where there is none that is sound."""
    with contextlib.ExitStack() as stack:
        return next((path for path in paths_of(bundle, key) if _mapped_plan(path, key, stack) is not None), None)


@contextlib.contextmanager
def opened_plan(bundle: Bundle, key: EngineKey) -> Iterator[Optional[memoryview]]:
    """The plan of this key's engine, mapped; None where there is none that is sound. Only within the body."""
    with contextlib.ExitStack() as stack:
        yield next((plan for plan in (_mapped_plan(path, key, stack) for path in paths_of(bundle, key))
                    if plan is not None), None)


def _mapped_plan(path: str, key: EngineKey, stack: contextlib.ExitStack) -> Optional[memoryview]:
    try:
        with _opened_own(path) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # absent, unreadable, or empty
        return None
    stack.callback(_closed, mapped)
    header = _header_of(bytes(mapped[:HEADER_BYTES]))
    with memoryview(mapped) as whole:
        plan = whole[HEADER_BYTES:]
    stack.callback(plan.release)
    if header is None or header.get("key") != dict(key._asdict()) or header.get("plan_bytes") != len(plan):
        return None
    return plan if hashlib.sha256(plan).hexdigest() == header.get("plan_sha256") else None


@contextlib.contextmanager
def _opened_own(path: str) -> Iterator[Any]:
    """The file, opened for reading. Raises OSError if a user other than this one and root could have written it."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a pipe ends
        if not _is_own(os.fstat(file.fileno())) or not _is_own(os.stat(os.path.dirname(path))):
            raise PermissionError(f"another user can write {path}")
        yield file


def _is_own(status: os.stat_result) -> bool:
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid())
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & stat.S_IWOTH and not by_group


def _closed(mapped: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):  # something still reads it: it ends with that
        mapped.close()


def _header_of(start: bytes) -> Optional[Dict[str, Any]]:
    if not start.startswith(MAGIC) or len(start) < HEADER_BYTES:
        return None
    try:
        header = value_of(start[len(MAGIC):].rstrip(b"\0").decode("utf-8"))
    except ValueError:
        return None
    return header if isinstance(header, dict) and header.get("schema") == SCHEMA else None


def keep_engine(bundle: Bundle, key: EngineKey, plan: Any) -> str:
    """Writes the plan, a buffer, whole or not at all -> its path. Engines of the same model and GPU in another
    precision are removed: the last one that was requested is the one that runs. MerinoError where the disk refuses."""
    header = MAGIC + json.dumps({
        "schema": SCHEMA, "key": dict(key._asdict()), "plan_bytes": len(plan),
        "plan_sha256": hashlib.sha256(plan).hexdigest()}).encode("utf-8")
    assert len(header) <= HEADER_BYTES, "the names of a GPU and a version are short"
    path = os.path.join(engine_folder(bundle), key.file_name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # unsound, and a new file would keep its owner
    with open_output(path, size_bytes=HEADER_BYTES + len(plan)) as file:
        file.write(header.ljust(HEADER_BYTES, b"\0"))
        file.write(plan)
    os.chmod(path, os.stat(path).st_mode & 0o755)  # whatever the umask
    for other in PRECISIONS:
        if other != key.precision:
            for stale in paths_of(bundle, key._replace(precision=other)):
                with contextlib.suppress(OSError):
                    os.unlink(stale)
    return path


@contextlib.contextmanager
def one_builder(bundle: Bundle) -> Iterator[None]:
    """Holds the lock of the folder: on a small board two builds at once have not enough memory. Waits for another."""
    with locked(engine_folder(bundle), "build-engine", WAIT_S):
        yield


def timing_cache(bundle: Bundle, key: EngineKey) -> bytes:
    """How long kernels took in earlier builds on this GPU; empty where that is not known."""
    try:
        with _opened_own(_timing_path(bundle, key)) as file:
            digest, data = file.read(32), file.read()
    except (OSError, MerinoError):
        return b""
    return data if hashlib.sha256(data).digest() == digest else b""


def keep_timing_cache(bundle: Bundle, key: EngineKey, data: bytes) -> None:
    """A disk that refuses it costs time at the next build, and nothing else."""
    with contextlib.suppress(MerinoError):
        write_output(_timing_path(bundle, key), hashlib.sha256(data).digest() + data, sync=False)


def _timing_path(bundle: Bundle, key: EngineKey) -> str:
    facts = json.dumps([key.gpu, key.capability, key.tensorrt, key.cuda])
    return os.path.join(engine_folder(bundle), f"timing-{hashlib.sha256(facts.encode('utf-8')).hexdigest()[:16]}")
