"""How many examples a property is tried on, where its number is not the profile's."""
from hypothesis import settings

ALL = 100  # examples of a profile under which each property has its own number: nightly, long


def examples(count, by_day=ALL, **more):
    """Settings with `count` examples; no more than `by_day` and the profile's where that has few: `make test`,
    `make test-fast`, and the Pythons of boards."""
    profiles = settings.default.max_examples
    return settings(max_examples=count if profiles >= ALL else min(count, by_day, profiles), deadline=None, **more)
