"""Packed files that an enemy wrote: each is refused in one line that names the entry, writes nothing outside its folder
and takes little memory. By reading, by unpacking, and by `install`.

All of them are tried in one process, which may take little memory more than it has after its imports.
"""
import collections
import hashlib
import io
import json
import os
import random
import re
import stat
import subprocess
import sys
import zipfile

import pytest

from merino_runtime.delivery.archive import check_hashes, check_signature, open_archive
from merino_runtime.delivery.fit import this_machine
from merino_runtime.delivery.install import install
from merino_runtime.delivery.keys import key_line
from merino_runtime.errors import MerinoError
from tests import ed25519_signer
from tests.hostile_archives import BLOCK, SEED, archive, canonical, description, good, kinds, member, signature

KEY = ed25519_signer.public_key_of(SEED)
KINDS = kinds()
MORE_MB = 160  # of address space
LONGEST_MESSAGE = 10000  # characters

TRY = """
import json, os, resource, sys
from merino_runtime.delivery.archive import check_hashes, check_signature, extract, open_archive
from merino_runtime.delivery.install import install
from merino_runtime.delivery.keys import read_public_key
from merino_runtime.errors import MerinoError

folder, key, more_mb = sys.argv[1], sys.argv[2], int(sys.argv[3])
trusted = [read_public_key(key).key]
with open("/proc/self/status") as file:
    size_kb = [int(line.split()[1]) for line in file if line.startswith("VmSize")][0]
resource.setrlimit(resource.RLIMIT_AS, (size_kb * 1024 + more_mb * 2 ** 20,) * 2)

def unpack(path, out):
    archive = open_archive(path)
    check_signature(archive, trusted)
    check_hashes(archive)

def extract_all(path, out):
    # Without the hashes first: they are checked while a file is written, and only into the folder.
    archive = open_archive(path)
    check_signature(archive, trusted)
    for number, entry in enumerate(archive.manifest.files):
        extract(archive, entry.path, os.path.join(out, str(number)))

def install_it(path, out):
    install(path, out, keys=[key], allow_unsigned=True)

for name in json.loads(sys.stdin.read()):
    said = {"name": name}
    for verb in (unpack, extract_all, install_it):
        out = os.path.join(folder, "out", verb.__name__, name)
        os.makedirs(out, exist_ok=True)
        try:
            verb(os.path.join(folder, name), out)
        except MerinoError as error:
            said[verb.__name__] = str(error)
    print(json.dumps(said))
"""


def snapshot(folder):
    """Every path below a folder with what a write would change, links not followed."""
    results = {}
    for place, folders, files in os.walk(str(folder)):
        for name in folders + files:
            path = os.path.join(place, name)
            status = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else ""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            results[os.path.relpath(path, str(folder))] = (status.st_mode, content)
    return results


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """{kind: {verb: message}} of one process; before and after it, all around the folder is the same."""
    around = tmp_path_factory.mktemp("around")
    folder = around / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "key.pub").write_text(key_line(KEY, "test"))
    (around / "evil").write_text("as it was")
    names = {f"{number}.merino": kind for number, kind in enumerate(KINDS)}
    for name, kind in names.items():
        (folder / name).write_bytes(kind.data)
    before = snapshot(around)
    done = subprocess.run(  # noqa: UP022 - Python 3.6 has no capture_output
        [sys.executable, "-c", TRY, str(folder), str(folder / "key.pub"), str(MORE_MB)], cwd=str(folder),
        input=json.dumps(list(names)).encode("ascii"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path), HOME=str(folder / "home")))
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    results = {names[output.pop("name")].name: output for output in map(json.loads, done.stdout.decode().splitlines())}
    assert set(results) == {kind.name for kind in KINDS}
    after = snapshot(around)
    inside = os.path.join("a", "b", "out")
    assert {path: state for path, state in after.items() if not path.startswith(inside)} == before
    written = {path[len(inside) + 1:] for path in after if path.startswith(inside + os.sep)}
    assert all(re.match(r"\w+(/\d+\.merino)?\Z|extract_all/\d+\.merino/\d\Z", path) for path in written), written
    return results


def test_there_are_many_kinds_and_the_good_one_is_taken(tmp_path):
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 100
    for data, key in ((good(), KEY), (archive(), None)):
        path = tmp_path / "good.merino"
        path.write_bytes(data)
        opened = open_archive(str(path))
        check_hashes(opened)
        assert check_signature(opened, [KEY]) == key


@pytest.mark.parametrize("kind", KINDS, ids=[re.sub(r"\W+", "-", kind.name) for kind in KINDS])
def test_each_kind_is_refused_in_one_line_that_names_the_entry(kind, refusals):
    output = refusals[kind.name]
    assert set(output) == {"unpack", "extract_all", "install_it"}
    for message in output.values():
        assert re.search(kind.refusal, message), message
        assert message.isprintable() and len(message) < LONGEST_MESSAGE
        assert message.endswith((".", "--trust NAME.pub"))


@pytest.mark.parametrize("signed", [True, False])
def test_cut_at_any_block_it_is_refused(signed, tmp_path):
    """And at each byte near one."""
    data, path = good() if signed else archive(), tmp_path / "cut.merino"
    for end in sorted({block + near for block in range(0, len(data), BLOCK) for near in (-1, 0, 1)} - {-1}):
        path.write_bytes(data[:end])
        with pytest.raises(MerinoError) as caught:
            open_archive(str(path))
        assert "cut.merino" in str(caught.value) and "\n" not in str(caught.value)


def mutation(numbers, data):
    """The data with one thing changed, as a bad disk, a bad line or an enemy leaves it."""
    how = numbers.choice(["bit", "byte", "cut", "lose", "repeat", "swap", "zero", "insert"])
    start = numbers.randrange(len(data))
    length = numbers.choice([1, 2, 8, 100, BLOCK, 2 * BLOCK])
    end = min(len(data), start + length)
    if how == "bit":
        return data[:start] + bytes([data[start] ^ 1 << numbers.randrange(8)]) + data[start + 1:]
    if how == "byte":
        return data[:start] + bytes([numbers.randrange(256)]) + data[start + 1:]
    if how == "swap":
        first, second = sorted(numbers.sample(range(0, len(data), BLOCK), 2))
        return (data[:first] + data[second:second + BLOCK] + data[first + BLOCK:second] + data[first:first + BLOCK]
                + data[second + BLOCK:])
    middle = {"cut": None, "lose": b"", "repeat": 2 * data[start:end], "zero": bytes(end - start),
              "insert": bytes(numbers.randrange(256) for _ in range(length)) + data[start:end]}[how]
    return data[:start] if middle is None else data[:start] + middle + data[end:]


@pytest.mark.parametrize("signed", [True, False])
def test_of_200_mutations_none_is_taken(signed, tmp_path):
    """Of a file without a signature too: what an accident changes is noticed."""
    numbers, data, path = random.Random(17), good() if signed else archive(), tmp_path / "mutated.merino"
    tried = 0
    while tried < 200:
        mutated = mutation(numbers, data)
        if mutated == data:
            continue
        tried += 1
        path.write_bytes(mutated)
        with pytest.raises(MerinoError) as caught:
            opened = open_archive(str(path))
            if check_signature(opened, [KEY]) is None and signed:
                raise MerinoError("mutated.merino: its signature is gone")
            check_hashes(opened)
        message = str(caught.value)
        assert "mutated.merino" in message and "\n" not in message and len(message) < LONGEST_MESSAGE


def test_without_a_signature_only_with_a_word_and_by_a_trusted_key_only(tmp_path):
    path, key = tmp_path / "a.merino", tmp_path / "key.pub"
    path.write_bytes(archive())
    key.write_text(key_line(KEY, "test"))
    with pytest.raises(MerinoError, match="no signature.*--allow unsigned"):
        install(str(path), str(tmp_path / "root"), keys=[str(key)])
    path.write_bytes(good())
    with pytest.raises(MerinoError, match="not trusted here.*--trust"):
        install(str(path), str(tmp_path / "root"), allow_unsigned=True)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("make, expected", [
    (lambda path: path.mkdir(), "not a regular file|directory"),
    (lambda path: os.mkfifo(str(path)), "not a regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    (lambda path: path.symlink_to("/dev/null"), "not a regular file"),
    (lambda path: path.symlink_to(path), "cannot read"), (str, "No such file")],
    ids=["folder", "pipe", "zeros", "null", "circle", "absent"])
def test_what_is_no_file_is_refused_at_once(make, expected, tmp_path):
    path = tmp_path / "a.merino"
    make(path)
    with pytest.raises(MerinoError, match=expected) as caught:
        open_archive(str(path))
    assert "a.merino" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_changes_after_it_was_opened_is_noticed(tmp_path):
    """The manifest in memory decides, whatever is read later."""
    path = tmp_path / "a.merino"
    path.write_bytes(good())
    opened = open_archive(str(path))
    for changed in (archive(**{"merino.pyz": member("merino.pyz", b"ppa" * 300)}), good()[:4000], b""):
        path.write_bytes(changed)
        with pytest.raises(MerinoError, match="is damaged|cannot read"):
            check_hashes(opened)


@pytest.fixture
def with_wheels(bundle_dirs, tmp_path):
    """A function: {name: data} of wheels -> with what message `install` refuses a file of a good bundle and them."""
    key, root, path = tmp_path / "key.pub", tmp_path / "root", tmp_path / "wheels.merino"
    key.write_text(key_line(KEY, "test"))
    bundle = sorted(bundle_dirs.values())[-1]
    machine = this_machine(str(tmp_path))
    if not machine.glibc:
        pytest.skip("this C library is not glibc, for which wheels are made")

    def refusal(wheels, unpacked_bytes):
        folder = "wheels/of-this-machine"
        files = collections.OrderedDict([("merino.pyz", b"app")])
        for name in sorted(set(os.listdir(bundle)) - {"merino.pyz"}):
            with open(os.path.join(bundle, name), "rb") as file:
                files["bundles/0/" + name] = file.read()
        files.update((folder + "/" + name, data) for name, data in wheels.items())
        value = description(files)
        value["wheels"] = [{"path": folder, "python": machine.python, "architecture": machine.board.architecture,
                            "glibc": "2.5", "packages": {"onnxruntime": "1.30.0", "pip": "1.0"},
                            "unpacked_bytes": unpacked_bytes}]
        manifest = canonical(value)
        path.write_bytes(archive(manifest, files, signature(manifest)))
        before = snapshot(tmp_path)
        with pytest.raises(MerinoError) as caught:
            install(str(path), str(root), keys=[str(key)])
        left = {path for path in snapshot(tmp_path) if not path.startswith("root")} - set(before)
        assert left == set() and "\n" not in str(caught.value)
        releases = root / "releases"
        assert not (root / "current").exists() and (not releases.exists() or list(releases.iterdir()) == [])
        return str(caught.value)

    return refusal


def wheel(members):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()


def test_wheels_that_would_fill_the_disk_are_refused_before_anything_is_unpacked(with_wheels):
    wheels = {"pip-1.0-py3-none-any.whl": wheel({"pip/__main__.py": b"raise SystemExit('run')"})}
    assert "MB are needed" in with_wheels(wheels, 2 ** 50)
