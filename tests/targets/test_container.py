"""The image of the board's server and the add-on around it: their files by what is documented; by night built and run.

The images are built by buildah from a root file system that mmdebstrap makes, since no registry is asked: for this
machine, and the server's for arm64 under emulation too. Where a tool is missing the reason is told.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import merino_runtime

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "container"
ADDON = FOLDER / "home-assistant"
CONFIG = yaml.safe_load((ADDON / "config.yaml").read_text(encoding="utf-8"))
REQUIREMENTS = ADDON / "requirements.txt"
IMAGES = [FOLDER / "Containerfile", ADDON / "Dockerfile"]
# Home Assistant's documented keys of an add-on's config.yaml that this one uses, and what a value must be.
KEYS = {
    "name": str, "version": str, "slug": str, "description": str, "arch": list, "startup": str, "boot": str,
    "stage": str, "map": list, "ports": dict, "ports_description": dict, "watchdog": str, "options": dict,
    "schema": dict,
}  # fmt: skip
REQUIRED = {"name", "version", "slug", "description", "arch"}
CHOICES = {
    "startup": {"initialize", "system", "services", "application", "once"},
    "boot": {"auto", "manual", "manual_only"}, "stage": {"stable", "experimental", "deprecated"},
}  # fmt: skip
TYPES = r"(str|bool|int|float|email|url|password|port|device|match|list)(\(.*\))?\??"


def instructions(path):
    """(word, rest) of each instruction, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_addon_says_what_home_assistant_documents():
    assert set(CONFIG) <= set(KEYS) and set(CONFIG) >= REQUIRED
    assert all(isinstance(value, KEYS[name]) for name, value in CONFIG.items())
    assert CONFIG["version"] == merino_runtime.__version__
    assert set(CONFIG["arch"]) <= {"aarch64", "amd64", "armv7", "armhf", "i386"}
    assert re.fullmatch(r"[-_.A-Za-z0-9]+", CONFIG["slug"])
    assert all(CONFIG[name] in allowed for name, allowed in CHOICES.items())
    folders = {"data", "share", "media", "config", "addon_config", "ssl", "backup", "all_addon_configs", "addons"}
    assert all(set(each) <= {"type", "read_only", "path"} and each["type"] in folders for each in CONFIG["map"])
    assert set(CONFIG["ports"]) == set(CONFIG["ports_description"]) == {"8080/tcp"}
    assert re.fullmatch(r"https?://\[HOST\]:\[PORT:8080\]/health", CONFIG["watchdog"])
    assert all(re.fullmatch(TYPES, each) for each in CONFIG["schema"].values())
    assert set(CONFIG["options"]) <= set(CONFIG["schema"])
    build = yaml.safe_load((ADDON / "build.yaml").read_text())
    assert set(build) <= {"build_from", "args", "labels"} and set(build["build_from"]) == set(CONFIG["arch"])


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_of_the_runtime_alone_and_says_whether_it_is_well(path):
    lines = instructions(path)
    known = {"ARG", "FROM", "COPY", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in lines} <= known
    (base,) = [rest.partition("=")[2] for word, rest in lines if word == "ARG" and "slim" in rest]
    assert re.fullmatch(r"docker\.io/library/python:3\.13\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    built = yaml.safe_load((ADDON / "build.yaml").read_text())["build_from"]
    assert set(built.values()) == {base}, "one image for all"
    (health,) = [rest for word, rest in lines if word == "HEALTHCHECK"]
    assert "/health" in health and "8080" in health
    assert "/merino_runtime-*.whl" in path.read_text() and "merino_edge" not in path.read_text()
    if path.name == "Containerfile":
        (user,) = [rest for word, rest in lines if word == "USER"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
        first = [word for word, _ in lines]
        assert first.index("USER") > len(first) - 1 - first[::-1].index("RUN"), "nothing is run as root behind it"


def test_the_images_packages_are_all_that_the_server_needs_each_by_version_and_hashes():
    pins = {}
    lines = re.sub(r"\\\n\s*|#.*", "", REQUIREMENTS.read_text()).splitlines()
    for line in filter(None, lines):
        name, version, hashes = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line).groups()
        pins[name] = version
        assert hashes.count("--hash") in (1, 2), "one for all machines, or one for each architecture"
    setup = ConfigParser()
    setup.read(ROOT / "release" / "merino-runtime" / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    needed = [Requirement(line) for text in lists for line in text.splitlines() if line]
    assert {each.name for each in needed} <= set(pins)
    assert all(pins[each.name] in each.specifier for each in needed)


@pytest.fixture
def addon(tmp_path):
    """Folders /data and /share, and an environment whose `merino` is the checkout's."""
    (tmp_path / "share" / "merino").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    merino = tmp_path / "venv" / "bin" / "merino"
    merino.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m merino_bench \"$@\" --host 127.0.0.1 --port 0\n")
    merino.chmod(0o755)
    return tmp_path


def start(addon, **options):
    """As a user who is not root, in whose place another would be: without privileges it is this one's."""
    given = {"bundle": "merino/bundle", "api_key": "k" * 20, **options}
    (addon / "data" / "options.json").write_text(json.dumps(given))
    path = os.pathsep.join((str(ROOT), str(ROOT / "runtime")))
    words = ["unshare", "--user"] if os.getuid() == 0 else []
    words += [addon / "venv" / "bin" / "python", ADDON / "run.py", addon / "data", addon / "share"]
    return subprocess.Popen(
        list(map(str, words)), env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def test_the_addon_serves_by_its_options_and_ends_by_sigterm(addon):
    process = start(addon)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "there is no bundle in" in out and "the option bundle" in out
    shutil.copytree(ROOT / "merino_edge" / "embedded" / "bundle", addon / "share" / "merino" / "bundle")
    process = start(addon, max_seconds=60)
    try:
        printed = [process.stdout.readline()]
        port = re.search(r"http://127\.0\.0\.1:(\d+)", printed[0])[1]
        assert health(port) == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert (addon / "data" / "keys").stat().st_mode & 0o777 == 0o640


def health(port, wait_s=120):
    """The last status of /health, which is 503 while the model is loaded."""
    ends = time.monotonic() + wait_s
    while True:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30).status
        except urllib.error.HTTPError as error:
            if time.monotonic() > ends:
                return error.code
        time.sleep(0.2)


SCRIPTS = Path(__file__).parent / "container"
PLATFORMS = {"amd64": "manylinux_2_28_x86_64", "arm64": "manylinux_2_28_aarch64"}
TOOLS = ("buildah", "/usr/lib/podman/netavark", "mmdebstrap", "unshare", "ip", "qemu-aarch64")


def wheels_into(folder, architecture):
    """Ours, and all that it needs for Debian 13's Python on this architecture."""
    source = folder.parent / "source"
    shutil.copytree(ROOT / "release" / "merino-runtime", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    names = [PLATFORMS[architecture].replace("manylinux_2_28", name)
             for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]  # fmt: skip
    platforms = [word for name in names for word in ("--platform", name)]
    call = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    call += ["--python-version", "3.13", "--implementation", "cp", *platforms, "--dest", folder, "--no-deps"]
    shutil.copy(REQUIREMENTS, folder)
    subprocess.run([*map(str, call), "--require-hashes", "--requirement", str(REQUIREMENTS)], check=True)


def in_namespaces(call):
    """(exit code, output) of a command as root of namespaces of its own, where all users of this machine exist."""
    script = 'read -r mapped; exec "$@"'
    spaces = ["--user", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    words = ["unshare", *spaces, "sh", "-c", script, "sh", *call]
    process = subprocess.Popen(
        list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    outer = os.readlink("/proc/self/ns/user")
    while process.poll() is None and os.readlink(f"/proc/{process.pid}/ns/user") == outer:
        time.sleep(0.05)
    for kind in ("uid", "gid"):
        Path(f"/proc/{process.pid}/{kind}_map").write_text("0 0 65536\n")
    try:
        out, err = process.communicate("mapped\n", timeout=1200)  # emulated, beside other tests
    finally:
        process.kill()
    return process.returncode, out, err


KEY = "a-key-for-the-test"


def volumes_of_the_server(folder):
    """Of docs/container.md's `podman run`."""
    (folder / "keys").write_text(f"{KEY}\n")
    (folder / "keys").chmod(0o644)
    return [f"{folder}/bundle:/bundle:ro", f"{folder}/keys:/keys:ro"]


def volumes_of_the_addon(folder):
    """What the Supervisor gives it: /data with the options, readable by root alone, and /share."""
    (folder / "share" / "merino").mkdir(parents=True)
    (folder / "bundle").rename(folder / "share" / "merino" / "bundle")
    (folder / "data").mkdir()
    (folder / "data" / "options.json").write_text(json.dumps({**CONFIG["options"], "api_key": KEY}))
    (folder / "data" / "options.json").chmod(0o600)
    return [f"{folder}/data:/data:rw", f"{folder}/share:/share:ro"]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "image, volumes, architecture",
    [
        (IMAGES[0], volumes_of_the_server, "amd64"), (IMAGES[0], volumes_of_the_server, "arm64"),
        (IMAGES[1], volumes_of_the_addon, "amd64"),
    ],
    ids=["server-amd64", "server-arm64", "addon-amd64"],
)  # fmt: skip
def test_the_image_is_built_serves_and_is_healthy(image, volumes, architecture, tmp_path):
    lacking = [name for name in TOOLS if shutil.which(name) is None]
    if lacking or os.getuid():
        pytest.skip(f"the image is built by root with {', '.join(lacking or TOOLS)}: not here")
    base, context = tmp_path / "base.tar", tmp_path / "context"
    subprocess.run([SCRIPTS / "base.sh", architecture, base], check=True)
    shutil.copytree(image.parent, context, ignore=shutil.ignore_patterns("home-assistant"))
    wheels_into(context, architecture)
    shutil.copytree(ROOT / "merino_edge" / "embedded" / "bundle", tmp_path / "bundle")
    tmp_path.chmod(0o755)
    emulated = "yes" if architecture == "arm64" else "no"
    call = [SCRIPTS / "serve.sh", base, context, image.name, tmp_path / "work", emulated, KEY, *volumes(tmp_path)]
    code, out, err = in_namespaces(call)
    log = tmp_path / "work" / "server.log"
    assert code == 0, f"{out}\n{err[-3000:]}\n{log.read_text() if log.exists() else ''}"
    user, state, *text = out.splitlines()
    assert (user, state) == ("10001", "healthy") and "little girl" in "\n".join(text)
    built = json.loads((tmp_path / "work" / "image.json").read_text())
    assert built["OCIv1"]["architecture"] == architecture
