"""The one error of the project, for whatever a user can cause. Programming errors are `assert`s.

`machine_fault` alone turns an OSError of a disk, a file system or a pipe into it. Memory that runs out: `io.memory`.
"""
import errno

REMEDIES = {
    errno.ENOSPC: "Free space on that disk, or name a path on another one",
    errno.EDQUOT: "Delete files of yours there, or name a path on another disk",
    errno.EFBIG: "Free space or raise the limit (`ulimit -f`), or name a path on another disk",
    errno.EROFS: "That file system is mounted read-only: name a path on another one",
    errno.EACCES: "Name a path that you may write to, or change its permissions",
    errno.EPERM: "Name a path that you may write to, or change its permissions",
    errno.EPIPE: "What read from it has ended: start that again, or name a file",
    errno.ENOENT: "Make the folder, or name another path",
    errno.ENOTDIR: "A file stands where a folder is needed: name another path",
    errno.EISDIR: "It is a folder: name a file",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ELOOP: "Its links lead in a circle: name another path",
    errno.EIO: "The disk or card reports a fault: name a path on another one, and check it with `dmesg`",
}


class MerinoError(Exception):
    """A request that cannot be met. The message names what failed, the value, what is allowed and what to do next.

    Each command-line entry catches it, prints it to stderr and exits with status 1.
    """


def machine_fault(doing: str, error: OSError) -> MerinoError:
    """Return the error for the user. doing: what failed, as in `write out.json`."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "Name another path")
    return MerinoError(f"cannot {doing}: {reason}. {remedy}.")


def last_line(output: bytes, exit_code: int) -> str:
    """Return the last line that a program printed, or its exit code if it printed none."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {exit_code}"
