"""The one error of the project: whatever a user can cause. Programming errors are left to `assert`."""


class MerinoError(Exception):
    """A request that cannot be met. The message says what, which value, what is allowed and what to do next.

    Caught once, in each command-line entry, which prints it to stderr and exits with status 1.
    """
