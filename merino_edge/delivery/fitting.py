"""Checks that bundles may share a package: they are one model in several formats, and each board can run one."""

from collections.abc import Callable, Sequence

from merino_edge.bundles.boards import fitting_boards
from merino_edge.bundles.files import TOKENIZER_FILE
from merino_edge.families.operators import core_named
from merino_edge.families.registry import read_geometry
from merino_edge.prediction.default_coefficients import slower_on
from merino_edge.prediction.formats import is_predicted, missing_isa
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.bundle import BackendNeed, Bundle, backends_text, older_graph, quantized_cache
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError

Say = Callable[[str], None]


def check_one_model(bundles: Sequence[Bundle], say: Say = lambda _: None) -> None:
    """Raise MerinoError if a bundle is of another model than the first, or is listed twice. Weights are not compared,
    because formats change them. say: gets a line if their sources differ."""
    first = bundles[0]
    for bundle in bundles[1:]:
        other = [what for what, value in _identity(bundle).items() if value != _identity(first)[what]]
        if other:
            raise MerinoError(f"{bundle.folder} is another model than {first.folder}: the {' and the '.join(other)}"
                              f" {'differ' if len(other) > 1 else 'differs'}. One file holds one model in several"
                              " formats; pack others on their own")  # fmt: skip
        if bundle.weights_source != first.weights_source:
            say(f"the weights of {first.folder} are from {first.weights_source!r}, those of {bundle.folder} from"
                f" {bundle.weights_source!r}")  # fmt: skip
    for number, bundle in enumerate(bundles):
        for before in bundles[:number]:
            if bundle._replace(folder="") == before._replace(folder=""):
                raise MerinoError(f"{before.folder} and {bundle.folder} are the same bundle: leave one out")


def _identity(bundle: Bundle) -> dict[str, object]:
    return {
        "architecture": (bundle.family, bundle.architecture),
        "vocabulary": (bundle.vocab, bundle.stop_ids),
        "kind of weights": bundle.weights,
        "tokenizer": [file.sha256 for file in bundle.files if file.path == TOKENIZER_FILE],
    }


def check_devices(bundles: Sequence[Bundle], devices: Sequence[DeviceProfile], say: Say = lambda _: None) -> None:
    """Raise MerinoError if a device can run none of the bundles well. say: gets a line for a bundle that no device
    uses."""
    reasons = [[why_not(bundle, profile) for bundle in bundles] for profile in devices]
    for profile, whys in zip(devices, reasons, strict=True):
        if all(whys):
            raise MerinoError(f"{profile.id} can run none of the bundles: {'; '.join(filter(None, whys))}."
                              " Add a bundle that it can run, or leave out the device")  # fmt: skip
    for profile, whys in zip(devices, reasons, strict=True):
        times = [times_slower(bundle, profile) for bundle, reason in zip(bundles, whys, strict=True) if not reason]
        if min(times) > 1:
            say(f"{profile.id} decodes {min(times):g} times slower than with an export for it (--for {profile.id})")
    for number, bundle in enumerate(bundles):
        if devices and all(whys[number] for whys in reasons):
            say(f"{bundle.folder} is of no use to the named devices: {reasons[0][number]}")


def times_slower(bundle: Bundle, profile: DeviceProfile) -> float:
    """Return how many times slower the bundle's graph decodes than one for the device's core type; 1 for that type."""
    if bundle.core is None:
        return 1.0
    operators = read_geometry(bundle.family, bundle.architecture).operators
    core, kv = core_named(bundle.core), quantized_cache(bundle)
    slower = slower_on(
        operators, bundle.precision, bundle.context, core, [profile], kv=kv, groups=bool(bundle.kernels)
    )
    return slower[0].times if slower else 1.0


def why_not(bundle: Bundle, profile: DeviceProfile) -> str:
    """Return why the device cannot run the bundle on any of its backends; empty if it can."""
    named = f"{bundle.folder} ({bundle.dialect} {bundle.precision})"
    own = [need for need in bundle.backends if need.name in profile.backends]
    if not own:
        return f"{named} needs {backends_text(bundle)}, and its system has {' and '.join(profile.backends)}"
    reasons = {need.name: why_not_on(need, bundle, profile.with_backend(need.name)) for need in own}
    if not all(reasons.values()):
        return ""
    if len(own) == 1:
        return f"{named} {reasons[own[0].name]}"
    return f"{named}: " + ", ".join(f"on {name} it {reason}" for name, reason in reasons.items())


def why_not_on(need: BackendNeed, bundle: Bundle, profile: DeviceProfile) -> str:
    """Return why the profile's backend cannot run the bundle; empty if it can. need: the backend and its version."""
    has = getattr(profile.software, profile.backend) or "0"
    if version_tuple(has) < version_tuple(need.min_version):
        less = f" (an export with {older_graph(bundle)} needs less)" if bundle.dialect != "portable" else ""
        return f"needs {need.name} {need.min_version} and its system has {has}{less}"
    if not is_predicted(profile, bundle.precision):
        return "needs a GPU" if bundle.dialect == "portable" else "needs a GPU and --dialect portable"
    missing = missing_isa(profile, bundle.precision)
    if missing:
        return f"needs {', '.join(missing)}, which its CPU lacks"
    operators = read_geometry(bundle.family, bundle.architecture).operators
    if not fitting_boards(
        operators, bundle.precision, bundle.context, bundle.threads, backends=[profile.backend], profiles=[profile],
        kv=quantized_cache(bundle),
    ):  # fmt: skip
        return "needs more memory than it has free"
    return ""
