"""Ctrl-C while a command line still imports its modules: no work has started, so the process just ends.

This is imported first, so it imports little: `signal` itself takes 20 ms, in which ctrl-C would print a traceback.
"""
import _signal  # type: ignore[import-not-found]
import os

INTERRUPTED = 130  # 128 + SIGINT


def end_at_once() -> bool:
    """Let ctrl-C end the process silently. Return whether it does: an interrupt that the parent process disabled, as
    for a job in the background, stays disabled."""
    handled = _signal.getsignal(_signal.SIGINT) in (_signal.default_int_handler, _end)
    if handled:
        _signal.signal(_signal.SIGINT, _end)
    return handled


def raise_again() -> None:
    """Let ctrl-C raise KeyboardInterrupt again."""
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)
