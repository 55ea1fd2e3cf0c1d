"""Ctrl-C while a command line still imports its modules: nothing has been begun, so the process just ends.

Comes before all else, so it imports next to nothing: `signal` itself takes 20 ms, in which ctrl-C would be a traceback.
"""
import _signal  # type: ignore[import-not-found]
import os

INTERRUPTED = 130  # 128 + SIGINT


def end_at_once() -> bool:
    """From here on ctrl-C ends the process without a word. -> whether it does: an interrupt that the parent process had
    switched off, as for a job in the background, stays switched off."""
    heard = _signal.getsignal(_signal.SIGINT) in (_signal.default_int_handler, _end)
    if heard:
        _signal.signal(_signal.SIGINT, _end)
    return heard


def raise_again() -> None:
    """From here on ctrl-C is a KeyboardInterrupt, as usual."""
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)
