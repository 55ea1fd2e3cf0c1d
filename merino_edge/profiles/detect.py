"""Which profile a board has, by the beginning of its device tree's model (`/proc/device-tree/model`)."""

from collections.abc import Iterable, Sequence

from merino_edge.profiles.profile import DeviceProfile, names_model
from merino_edge.profiles.reading import list_profiles


def profile_of_model(model: str, profiles: Iterable[DeviceProfile] | None = None) -> DeviceProfile | None:
    """The profile, of the shipped ones or of `profiles`, that names a device tree's model; None where none does.

    The longest beginning decides, so that a variant may have a profile of its own beside the board's.
    """
    named = [
        (len(beginning), profile)
        for profile in (list_profiles() if profiles is None else profiles)
        for beginning in profile.device_tree_models
        if names_model(beginning, model)
    ]
    return max(named, key=lambda each: each[0])[1] if named else None



def known_models(profiles: Sequence[DeviceProfile] | None = None) -> list[str]:
    """All beginnings that profiles name, for messages."""
    named = list_profiles() if profiles is None else profiles
    return [beginning for profile in named for beginning in profile.device_tree_models]
