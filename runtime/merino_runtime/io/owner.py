"""Tells whether other users could have written a file or folder: their content is not used. Standard library only."""
import os
import stat


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0  # Windows has no such function


def others_may_write(status: os.stat_result, sticky_allowed: bool = False) -> bool:
    """Return whether a user other than root and this one owns the file or folder, or may write it. sticky_allowed: a
    folder like /tmp counts as protected, because what is this user's in it stays this user's."""
    group = 0 if is_root() else os.getegid()
    writable = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid not in (0, group))
    sticky = sticky_allowed and status.st_mode & stat.S_ISVTX
    return status.st_uid not in (0, os.geteuid()) or bool(writable and not sticky)


def check_own(path: str, others: int = 0o077) -> None:
    """Raise OSError if another user owns `path`, or has one of the permissions `others`."""
    status = os.stat(path)
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & others):
        raise OSError(f"other users may {'read or ' if others & 0o044 else ''}change {path}")
