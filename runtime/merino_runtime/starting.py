"""A command line while it still imports its modules: memory that does not even suffice for these, and ctrl-C.

Standard library only, and little of it. A KeyboardInterrupt between two lines of an import ends in a traceback, or in
whatever the imported module makes of it, so there is none before the imports are done (`ctrl_c`).
"""
import contextlib
import os
from typing import Iterator

from merino_runtime.address_space import limit_mb, refuse_blas_without_room
from merino_runtime.ctrl_c import end_at_once, raise_again

WITHOUT_FIGURES = (b"out of memory in starting. Stop other programs, or raise the limit if there is one "
                   b"(`ulimit -v`).\n")
NO_MEMORY = ("failed to map segment", "annot allocate memory")  # of the dynamic loader and the C library


@contextlib.contextmanager
def starting(program: str) -> Iterator[None]:
    """Around the imports."""
    refuse_blas_without_room()
    heard = end_at_once()
    try:
        _load_hashes()
        yield
    except (MemoryError, ImportError, OSError, SystemError) as error:
        if not _lacks_memory(error):
            raise
        error.__traceback__ = None  # it holds modules that were half imported
        _end_without_memory(program, error)
    finally:
        if heard:
            raise_again()


def _load_hashes() -> None:
    """Where OpenSSL's part does not fit into memory, hashlib would log a traceback for each kind of hash."""
    try:
        import _hashlib  # noqa: F401
    except ImportError as error:  # some builds of Python have none
        if _lacks_memory(error):
            raise


def _lacks_memory(error: BaseException) -> bool:
    """Python's own importer, without memory, also raises a SystemError."""
    if isinstance(error, SystemError):
        return limit_mb() is not None
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def _end_without_memory(program: str, error: BaseException) -> None:
    """At once: what Python runs on its way out would fail again, with a traceback."""
    said = WITHOUT_FIGURES
    try:
        from merino_runtime.memory import ran_out

        said = f"{program}: {ran_out(error, 'starting')}\n".encode("utf-8", "backslashreplace")
    except Exception:  # there is too little memory to look how much there is
        pass
    try:
        os.write(2, said)
    finally:
        os._exit(1)
