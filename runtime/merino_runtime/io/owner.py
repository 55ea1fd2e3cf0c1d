"""Whose a cached file or folder is: another user's content is not used. Standard library only."""
import os


def check_own(path: str, others: int = 0o077) -> None:
    """Raise OSError if another user owns `path`, or has one of the permissions `others`."""
    status = os.stat(path)
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & others):
        raise OSError(f"other users may {'read or ' if others & 0o044 else ''}change {path}")
