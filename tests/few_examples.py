"""How many examples a property is tried on, where it needs another number than the profile's."""
from hypothesis import settings

USUAL = 100  # of hypothesis


def examples(count, **more):
    """Settings with `count` examples; no more than the profile's where that has few (`fast`: `make test-fast`, and the
    Pythons of boards)."""
    profiles = settings.default.max_examples
    return settings(max_examples=count if profiles >= USUAL else min(count, profiles), deadline=None, **more)
