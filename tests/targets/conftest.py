"""Fixtures of the tests on emulated boards."""

from emulated_board import every_cpu  # noqa: F401
