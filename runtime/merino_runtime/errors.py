"""The one error of the project, for whatever a user can cause. Programming errors are `assert`s."""


class MerinoError(Exception):
    """A request that cannot be met. The message names what failed, the value, what is allowed and what to do next.

    Each command-line entry catches it, prints it to stderr and exits with status 1.
    """
