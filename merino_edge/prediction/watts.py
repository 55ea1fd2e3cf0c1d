"""The figure of a profile that says how much power the board takes while its backend is busy. Loads no pydantic, since
the command line reads it at its start."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merino_edge.profiles.coefficients import Figure
    from merino_edge.profiles.profile import DeviceProfile

WATTS = {"onnxruntime": "power.stress_w", "tensorrt": "performance.tensorrt.busy_w"}  # paths in the profile's file


def busy_watts(profile: "DeviceProfile") -> "Figure | None":
    """Watts of the whole board; None where the profile has none."""
    return profile.figure(WATTS[profile.backend])
