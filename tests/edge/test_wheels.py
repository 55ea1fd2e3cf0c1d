"""Which wheels are right for a board: names of platforms, what packages require there, and sets that need nothing else.

pip resolves against folders of small wheels made here, without a network. Tests with real packages are skipped where
no package index can be reached.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging import tags

from merino_edge.delivery import wheels
from merino_edge.delivery.wheels import (
    Target,
    fetch,
    marker_environment,
    platforms,
    required_by,
    requirements_of,
    targets_of,
    wheels_for,
)
from merino_edge.profiles.profile import Software
from merino_edge.profiles.reading import list_profiles, load_profile
from merino_runtime.errors import MerinoError

PI = Target("3.11", "aarch64", "2.36")
DAILY = (("3.6", "jetson-nano"), ("3.11", "raspberry-pi-4"))
SOFTWARE = Software(system="test", glibc="2.36", python="3.11", onnxruntime="1.32", numpy="2.4", tokenizers="0.23")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A function that puts a wheel into the only folder in which pip looks: name, version, tag, lines of metadata."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def add(name, version, *lines, tag="py3-none-any"):
        path = folder / f"{name}-{version}-{tag}.whl"
        parts = {
            "METADATA": "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]) + "\n",
            "WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n", "RECORD": "",
        }  # fmt: skip
        with zipfile.ZipFile(path, "w") as file:
            for part, content in parts.items():
                file.writestr(f"{name}-{version}.dist-info/{part}", content)
        return path

    for name, version in (("numpy", "2.4.1"), ("tokenizers", "0.23.0"), ("pip", "26.0"), ("onnxruntime", "1.32.0")):
        add(name, version)
    return add


def names(place):
    return sorted(path.name.split("-py3")[0] for path in place.glob("*.whl"))


def fetched(folder, wanted=None, target=PI):
    folder.mkdir()
    fetch(requirements_of(SOFTWARE) if wanted is None else wanted, target, folder)
    return names(folder)


def test_platforms_are_those_that_pip_itself_has_here():
    """`packaging` reads the glibc of this machine; ours must be the same list."""
    here = [name for name in tags.platform_tags() if name.startswith("manylinux")]
    if not here:
        pytest.skip("this C library is not glibc")
    architecture = "x86_64" if here[0].endswith("x86_64") else "aarch64"
    glibc = "2." + here[0].removeprefix("manylinux_2_").removesuffix(f"_{architecture}")
    assert platforms(Target("3.11", architecture, glibc)) == here


@pytest.mark.parametrize("change, reason", [
    ({"arch": "other"}, "aarch64, x86_64"), ({"glibc": None}, "glibc None"), ({"glibc": "3.1"}, "glibc '3.1'"),
    ({"python": "three"}, "python 'three'"),
])  # fmt: skip
def test_a_profile_that_does_not_say_enough_is_refused(change, reason):
    profile = load_profile("raspberry-pi-5")
    if "arch" not in change:
        change = {"software": profile.software.model_copy(update=change)}
    with pytest.raises(MerinoError, match=reason):
        targets_of(profile.model_copy(update=change))


def test_what_a_package_requires_is_judged_for_the_target_and_not_for_this_machine(index, tmp_path):
    index("onnxruntime", "1.32.1", 'Requires-Dist: old; python_version < "3.11"', "Requires-Dist: always>=1",
          'Requires-Dist: windows; sys_platform == "win32"', 'Requires-Dist: arm; platform_machine == "aarch64"',
          'Requires-Dist: extra; extra == "gpu"')  # fmt: skip
    for name in ("always", "arm"):
        index(name, "1.0")
    result = fetched(tmp_path / "new")
    assert result == ["always-1.0", "arm-1.0", "numpy-2.4.1", "onnxruntime-1.32.1", "pip-26.0", "tokenizers-0.23.0"]
    assert marker_environment(Target("3.6", "aarch64", "2.27"))["python_version"] == "3.6"


def test_a_requirement_found_late_replaces_what_was_fetched_before(index, tmp_path):
    """The newest `shared` is fetched first, then `late` wants an older one, which wants another package."""
    index("onnxruntime", "1.32.1", "Requires-Dist: shared", "Requires-Dist: late")
    index("late", "1.0", "Requires-Dist: later")
    index("later", "1.0", "Requires-Dist: shared<2")
    index("shared", "2.0", "Requires-Dist: nowhere-to-be-found<0; python_version < '3'")
    index("shared", "1.0", "Requires-Dist: last")
    index("last", "1.0")
    results = [each for each in fetched(tmp_path / "new") if each.startswith(("sh", "la"))]
    assert results == ["last-1.0", "late-1.0", "later-1.0", "shared-1.0"]


def test_packages_that_contradict_each_other_are_named(index, tmp_path):
    index("onnxruntime", "1.32.1", "Requires-Dist: numpy<2")
    with pytest.raises(MerinoError, match=r"for cp311-aarch64-glibc2\.36: .*requirement numpy.*<2") as caught:
        fetched(tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_a_refused_version_is_never_taken_and_one_for_another_machine_neither(index, tmp_path):
    software = SOFTWARE.model_copy(update={"onnxruntime": "1.21"})
    index("onnxruntime", "1.21.0")
    with pytest.raises(MerinoError, match=r"requirement onnxruntime!=1\.21\.0"):
        fetched(tmp_path / "one", requirements_of(software))
    index("onnxruntime", "1.21.1", tag="cp311-cp311-manylinux_2_39_aarch64")
    index("onnxruntime", "1.21.1", tag="cp311-cp311-manylinux_2_28_x86_64")
    with pytest.raises(MerinoError, match="requirement onnxruntime"):
        fetched(tmp_path / "two", requirements_of(software))
    index("onnxruntime", "1.21.2", tag="cp311-cp311-manylinux_2_28_aarch64")
    result = fetched(tmp_path / "three", requirements_of(software))
    assert "onnxruntime-1.21.2-cp311-cp311-manylinux_2_28_aarch64.whl" in result


def test_what_was_fetched_once_is_kept_and_whole(index, monkeypatch):
    messages = []
    first = wheels_for(SOFTWARE, PI, messages.append)
    assert len(messages) == 2 and first.target == PI and first.path == "wheels/cp311-aarch64-glibc2.36"
    assert first.packages == {"numpy": "2.4.1", "tokenizers": "0.23.0", "pip": "26.0", "onnxruntime": "1.32.0"}
    index("numpy", "2.4.2")  # newer ones do not change what was packed before
    monkeypatch.setattr(wheels, "download", None)
    assert wheels_for(SOFTWARE, PI, messages.append) == first and len(messages) == 2


@pytest.mark.usefixtures("index")
def test_what_was_kept_and_is_damaged_is_fetched_again():
    first = wheels_for(SOFTWARE, PI)
    data = first.files[0].read_bytes()
    for damage in (lambda path: path.write_bytes(data[:-1] + b"x"), Path.unlink):
        damage(first.files[0])
        messages = []
        assert wheels_for(SOFTWARE, PI, messages.append) == first and len(messages) == 2
        assert first.files[0].read_bytes() == data
    (first.files[0].parent / "wheels.json").write_text("[]")
    assert wheels_for(SOFTWARE, PI) == first


@pytest.mark.usefixtures("index")
def test_nothing_is_kept_where_a_package_is_missing(tmp_path):
    (tmp_path / "index" / "pip-26.0-py3-none-any.whl").unlink()
    with pytest.raises(MerinoError, match="requirement pip .*Connect this machine"):
        wheels_for(SOFTWARE, PI)
    assert list((tmp_path / "cache").rglob("*.whl")) == []


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """Skips what needs real packages where there are none to be had."""
    folder = str(tmp_path_factory.mktemp("try"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "six"]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        pytest.skip("no package index can be reached")


@pytest.mark.slow
@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("target, profile", [
    pytest.param(target, profile, marks=() if (target.python, profile) in DAILY else pytest.mark.nightly)
    for target, profile in sorted({
        (target, profile.id) for profile in list_profiles() for target in targets_of(profile)
    })
], ids=lambda each: each if isinstance(each, str) else each.name)  # fmt: skip
def test_the_real_packages_of_each_board_are_a_closed_set(target, profile):
    software = load_profile(profile).software
    got = wheels_for(software, target)
    assert got.packages.keys() >= {"numpy", "tokenizers", "onnxruntime", "pip"}
    assert got.packages["onnxruntime"] != "1.21.0" and got.packages["onnxruntime"].startswith(software.onnxruntime)
    assert got.packages["pip"] == "21.3.1" or target.python != "3.6"
    assert not {"huggingface-hub", "sympy"} & got.packages.keys()
    missing = [each for file in got.files for each in required_by(file, target) if each.name not in got.packages]
    assert missing == []


@pytest.mark.slow
@pytest.mark.usefixtures("online")
def test_a_template_that_only_jinja_renders_brings_it_for_python_3_6_too():
    old = SOFTWARE.model_copy(update={"python": "3.6", "onnxruntime": "1.10.0", "numpy": "1.19", "tokenizers": "0.12"})
    result = wheels_for(old, Target("3.6", "aarch64", "2.27"), more=["jinja2", "uvicorn"])
    assert result.packages["jinja2"] == "3.0.3" and "markupsafe" in result.packages
    assert result.packages["uvicorn"] == "0.16.0" and {"h11", "click", "asgiref", "dataclasses"} <= set(result.packages)
